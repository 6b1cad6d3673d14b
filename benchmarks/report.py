"""What every benchmark shares: its options, and a report that tells how it was made.

A report is Markdown with its tables and figures beside it as CSV and PNG.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from captum_nif._files import whole_or_nothing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, object]

_VERSIONS_OF = ("torch", "captum", "numpy", "scipy", "numba")


def argument_parser(
    name: str, description: str, datasets: Sequence[str], several: bool = False
) -> argparse.ArgumentParser:
    r"""
    The options that all benchmarks have; a benchmark adds its own.

    Args:

        name (str): Module of the benchmark within :mod:`benchmarks`.
        description (str): What it measures.
        datasets (Sequence[str]): What ``--dataset`` chooses from, the default first.
        several (bool, optional): Whether it takes several, and all by default.
            Default: ``False``

    Returns:

        argparse.ArgumentParser: With ``dataset``, ``data_dir``, ``seed`` and ``out``.

    Examples::

        >>> parser = argument_parser("faithfulness", "Which maps are true?", ["iris"])
        >>> options = parser.parse_args(["--seed", "3"])
        >>> options.dataset, options.seed, options.data_dir
        ('iris', 3, None)
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--dataset",
        choices=datasets,
        nargs="+" if several else None,
        default=list(datasets) if several else datasets[0],
        help="what it is run on",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of data files; if None, that of the environment variable "
        "CAPTUM_NIF_DATA, else a cache; what is missing there is downloaded",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws all that is random")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="result folder"
    )
    return parser


class Report:
    r"""
    Results in the order in which they are added, written all at once.

    Args:

        name (str): First part of every file's name: letters, digits, ``_`` and ``-``.
        title (str): Heading of the page.
        seed (int): What all randomness came from.

    Examples::

        >>> from tempfile import TemporaryDirectory
        >>> report = Report("coins", "Do coins land on edge?", seed=0)
        >>> report.text("Hardly ever.")
        >>> report.table([{"side": "head", "share": 0.5}, {"side": "edge", "share": 0}])
        >>> with TemporaryDirectory() as folder:
        ...     [path.name for path in report.write(folder)]
        ['coins.csv', 'coins.md']
    """

    def __init__(self, name: str, title: str, seed: int) -> None:
        self.name = _file_stem(name)
        self._files: dict[str, bytes] = {}
        self._page = [f"# {title}", markdown_table(_as_rows(environment(seed)))]

    def text(self, paragraph: str) -> None:
        r"""
        Add a paragraph.

        Args:

            paragraph (str): Markdown.
        """
        self._page.append(paragraph)

    def table(self, rows: Sequence[Row], part: str = "", caption: str = "") -> None:
        r"""
        Add a table: four digits on the page, all of them in ``name_part.csv``.

        Args:

            rows (Sequence[Mapping[str, object]]): The rows, all with the same columns
                in the same order.
            part (str, optional): Second part of the file's name. Default: none
            caption (str, optional): Markdown above the table. Default: none

        Raises:

            ValueError: There are no rows, their columns differ, or the report has such
                a file.
        """
        columns = _columns(rows)
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file = self._add(part, ".csv", stream.getvalue().encode())
        if caption:
            self._page.append(caption)
        self._page += [markdown_table(rows), f"All digits: [{file}]({file})"]

    def figure(self, figure: Figure, part: str = "", caption: str = "") -> None:
        r"""
        Add a figure as it is now, as ``name_part.png``.

        Args:

            figure (matplotlib.figure.Figure): The figure; it stays open.
            part (str, optional): Second part of the file's name. Default: none
            caption (str, optional): One line, also for those who cannot see it.
                Default: the report's name

        Raises:

            ValueError: The report has such a file.
        """
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150, bbox_inches="tight")
        file = self._add(part, ".png", stream.getvalue())
        self._page.append(f"![{caption or self.name}]({file})")
        if caption:
            self._page.append(caption)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        r"""
        Write the page and what it shows, each file whole or not at all, the page last.

        Args:

            folder (str or os.PathLike): Where to; created if need be. Files of an
                earlier run are replaced.

        Returns:

            list[Path]: The files, the page last.
        """
        page = "\n\n".join(self._page) + "\n"
        files = {**self._files, f"{self.name}.md": page.encode()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            with whole_or_nothing(Path(folder) / file) as stream:
                stream.write(content)
        return [Path(folder) / file for file in files]

    def _add(self, part: str, suffix: str, content: bytes) -> str:
        file = "_".join([self.name, *([_file_stem(part)] if part else [])]) + suffix
        if file in self._files:
            raise ValueError(f"the report already has {file}: name another part")
        self._files[file] = content
        return file


def environment(seed: int) -> dict[str, str]:
    r"""
    What someone needs to know to run it again.

    Args:

        seed (int): What all randomness came from.

    Returns:

        dict[str, str]: Command, date, commit, seed, versions and processors.
    """
    facts = {
        "command": _command(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit_of(Path(__file__).parent),
        "seed": str(seed),
        "versions": ", ".join(
            [f"Python {platform.python_version()}"]
            + [f"{package} {version(package)}" for package in _VERSIONS_OF]
        ),
        "system": f"{platform.system()} {platform.machine()}",
        "CPU": f"{_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} for torch",
    }
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def commit_of(folder: Path) -> str:
    r"""
    The commit that a folder was checked out from.

    Args:

        folder (Path): Any folder of the checkout.

    Returns:

        str: Its hash, and whether tracked files were changed since; ``"unknown"``
        outside a checkout or without git.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}, changed since" if changed else commit


def markdown_table(rows: Sequence[Row]) -> str:
    r"""
    Rows as a Markdown table, floats with four digits, numbers to the right.

    Args:

        rows (Sequence[Mapping[str, object]]): The rows, all with the same columns in
            the same order.

    Returns:

        str: The table.

    Raises:

        ValueError: There are no rows, or their columns differ.

    Examples::

        >>> print(markdown_table([{"method": "NIF", "seconds": 1 / 3}]))
        | method | seconds |
        | --- | ---: |
        | NIF | 0.3333 |
    """
    columns = _columns(rows)
    numeric = {c: all(isinstance(row[c], Real) for row in rows) for c in columns}
    lines = [
        [_cell(column) for column in columns],
        ["---:" if numeric[column] else "---" for column in columns],
        *([_cell(row[column]) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _columns(rows: Sequence[Row]) -> list[str]:
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(rows[0])
    for i, row in enumerate(rows):
        if list(row) != columns:
            raise ValueError(f"row {i} has columns {list(row)}, row 0 has {columns}")
    return columns


def _as_rows(facts: Mapping[str, str]) -> list[Row]:
    return [{"made with": name, "": value} for name, value in facts.items()]


def _cell(value: object) -> str:
    inexact = isinstance(value, Real) and not isinstance(value, Integral)
    text = f"{value:.4g}" if inexact else str(value)
    return " ".join(text.replace("|", r"\|").split())


def _file_stem(name: str) -> str:
    if not re.fullmatch(r"[\w-]+", name, flags=re.ASCII):
        raise ValueError(
            f"{name!r} cannot be part of a file's name: use letters, digits, _ and -"
        )
    return name


def _command() -> str:
    """The command line, as someone else would type it."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *program, *sys.argv[1:]])


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"
