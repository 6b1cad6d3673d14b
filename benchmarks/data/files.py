"""Published files: read from the data folder, downloaded where missing, always checked.

The data folder is the argument ``data_dir``, else the environment variable
``CAPTUM_NIF_DATA``, else ``~/.cache/captum_nif``. Every file is compared with the
sha256 of the published original each time it is read, so that whoever parses it can
rely on every byte, and a benchmark's numbers belong to the data that its report names.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from captum_nif._files import whole_or_nothing

_CHUNK = 1 << 16
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class PublishedFile:
    r"""
    A file that others publish, and how to know it.

    Args:

        path (str): Its place inside the data folder, with forward slashes.
        sha256 (str): Checksum of its content, 64 hexadecimal digits.
        urls (tuple[str, ...]): Where it can be downloaded, tried in this order.
        credit (str): Author and licence, for the captions of figures that show it.
    """

    path: str
    sha256: str
    urls: tuple[str, ...]
    credit: str


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    r"""
    The folder that holds data files; it need not exist yet.

    Args:

        data_dir (str or os.PathLike, optional): The folder itself. Default: the
            environment variable ``CAPTUM_NIF_DATA``, else ``captum_nif`` in the user's
            cache folder.

    Returns:

        Path: The folder.

    Examples::

        >>> data_folder("data").name
        'data'
    """
    named = data_dir or os.environ.get("CAPTUM_NIF_DATA")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "captum_nif"


def read_published(
    file: PublishedFile,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> bytes:
    r"""
    The content of a published file, kept in the data folder once downloaded.

    Args:

        file (PublishedFile): What to read.
        data_dir (str or os.PathLike, optional): See :func:`data_folder`.
        download (bool, optional): Whether a file missing there is downloaded into it.
            Default: ``True``

    Returns:

        bytes: The content, equal to the published one.

    Raises:

        FileNotFoundError: The file is not in the folder and could not be, or was not to
            be, downloaded.
        ValueError: The file in the folder is not the published one.
    """
    path = data_folder(data_dir) / file.path
    if path.exists():
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
            raise ValueError(
                f"{path} is cut, corrupt or another version: its {len(content)} bytes "
                f"have the sha256 {found}, expected {file.sha256}. Delete it to have "
                "the published file downloaded."
            )
        return content
    if not download:
        raise FileNotFoundError(f"{path} does not exist. {_WHAT_TO_DO}")
    content = _download(file, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as stream:
        stream.write(content)
    return content


_WHAT_TO_DO = (
    "Put the file there by hand, or name the folder that holds it with data_dir= "
    "(--data-dir) or the environment variable CAPTUM_NIF_DATA."
)


def _download(file: PublishedFile, path: Path) -> bytes:
    """The content from the first address that gives the published one."""
    failures = []
    for url in file.urls:
        try:
            content = _get(url, path.name)
        # HTTPException: an answer cut within its headers or chunks is no OSError.
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error!r}")
            continue
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
        failures.append(f"{url}: {len(content)} bytes with another sha256")
    raise FileNotFoundError(
        f"{path} does not exist and could not be downloaded:\n  "
        + "\n  ".join(failures)
        + f"\n{_WHAT_TO_DO}"
    )


def _get(url: str, label: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
        length = response.headers["Content-Length"]
        # disable=None: no bar where no one watches, such as a log file.
        with tqdm.wrapattr(
            response, "read", total=length and int(length), desc=label, disable=None
        ) as stream:
            return b"".join(iter(lambda: stream.read(_CHUNK), b""))
