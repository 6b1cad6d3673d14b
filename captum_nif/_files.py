"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_or_nothing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    r"""Opens a file that takes the place of ``path`` only if the block succeeds.

    The bytes go to a temporary file in the folder of ``path``, are flushed to the
    disk and then moved over ``path`` in one step. If the block raises, or the disk
    fills up, the temporary file is removed and whatever was at ``path`` stays.

    Args:
        path (str or os.PathLike): Where the bytes shall end up. A symbolic link is
            followed; an existing regular file is replaced.

    Yields:
        BinaryIO: The temporary file, open for writing.

    Raises:
        FileNotFoundError: If the folder of ``path`` does not exist.
        IsADirectoryError: If ``path`` is a folder.
        OSError: If ``path`` is neither a regular file nor free (a device, a pipe),
            or cannot be written.

    Examples::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_or_nothing(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"all of it")
        ...     Path(folder, "a.txt").read_bytes()
        b'all of it'
    """
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {final}: its folder does not exist; create it first"
        )
    if final.is_dir():
        raise IsADirectoryError(f"cannot write {final}: it is a folder; name a file")
    if final.exists() and not final.is_file():
        # Moving a file over /dev/null or a pipe would replace the device itself.
        raise OSError(f"cannot write {final}: it exists and is no regular file")
    temporary = final.with_name(f".captum_nif-{secrets.token_hex(8)}.tmp")
    try:
        # Not `tempfile`: its files are private (mode 0600) and would stay so.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
