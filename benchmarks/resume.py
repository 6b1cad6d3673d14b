"""Results that survive an interrupted run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import captum_nif
from captum_nif._files import whole_or_nothing


class Finished:
    r"""
    What was measured so far, in a file that is up to date after every result.

    Args:

        path (str or os.PathLike): The file, JSON. Its folder is created if need be. To
            measure everything anew, remove the file.

    Raises:

        ValueError: The file is there, but is not one of these.

    Examples::

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "coins.json")
        ...     first = Finished(path).result({"toss": 1}, lambda: "head")
        ...     Finished(path).result({"toss": 1}, lambda: "tail")
        'head'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._results: dict[str, Any] = {}
        if self._path.exists():
            try:
                self._results = dict(json.loads(self._path.read_text()))
            except (ValueError, TypeError) as broken:
                raise ValueError(
                    f"{self._path} holds no finished results: remove it, or name "
                    "another result folder"
                ) from broken

    def result(self, key: Mapping[str, object], measure: Callable[[], Any]) -> Any:
        r"""
        The result of that key: the one kept, else measured now and then kept.

        Args:

            key (Mapping[str, object]): All that the result depends on, as JSON.
            measure (Callable): Gives the result, as JSON.

        Returns:

            Any: The result.
        """
        name = json.dumps(key, sort_keys=True)
        if name not in self._results:
            self._results[name] = measure()
            with whole_or_nothing(self._path) as file:
                file.write(json.dumps(self._results, indent=0).encode())
        return self._results[name]


def digest_of_sources(*folders: str | os.PathLike[str]) -> str:
    r"""
    A digest of program texts, by which results of other sources are told apart.

    Results depend on the code as it is, committed or not; on prose they do not.

    Args:

        folders (str or os.PathLike, optional): Where the Python files are, at any
            depth.
            Default: those of the package and of its benchmarks

    Returns:

        str: SHA-256 of the names and contents of all files, in hexadecimal.

    Examples::

        >>> len(digest_of_sources())
        64
    """
    found = [Path(folder) for folder in folders] or [
        Path(captum_nif.__file__).parent,
        Path(__file__).parent,
    ]
    digest = hashlib.sha256()
    for folder in found:
        for file in sorted(folder.rglob("*.py")):
            content = file.read_bytes()
            # Lengths keep what is moved from one file to the next from going unseen.
            name = file.relative_to(folder).as_posix()
            digest.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return digest.hexdigest()
