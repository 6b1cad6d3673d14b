import csv
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.report import (
    Report,
    argument_parser,
    commit_of,
    environment,
    markdown_table,
)


@pytest.fixture
def figure() -> Figure:
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 3, 2])
    yield figure
    plt.close(figure)


def cells(table: str) -> list[list[str]]:
    """A Markdown table read back, its line of dashes too."""
    return [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
        for line in table.splitlines()
    ]


def test_a_table_has_four_digits_and_numbers_to_the_right():
    rows = [
        {"method": "NIF", "seconds": math.pi * 1e4, "runs": 100_000, "note": None},
        {"method": "a|b\nc", "seconds": np.float32(1 / 3), "runs": 2, "note": 1.0},
    ]
    assert cells(markdown_table(rows)) == [
        ["method", "seconds", "runs", "note"],
        ["---", "---:", "---:", "---"],
        ["NIF", "3.142e+04", "100000", "None"],
        [r"a\|b c", "0.3333", "2", "1"],
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"a": 1}, {"b": 1}], r"row 1 has columns \['b'\], row 0 has \['a'\]"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "row 1 has columns"),
    ],
)
def test_rows_that_make_no_table_are_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        markdown_table(rows)
    report = Report("name", "Title", seed=0)
    with pytest.raises(ValueError, match=message):
        report.table(rows)
    # Nothing of what was refused is in the report.
    assert [path.name for path in report.write(tmp_path)] == ["name.md"]


def test_a_report_holds_what_was_added_in_order(tmp_path, figure):
    rows = [{"k": 1, "value": 1 / 3}, {"k": 2, "value": 2e-300}]
    report = Report("bench", "How fast?", seed=7)
    report.text("First words.")
    report.table(rows, caption="The first table.")
    report.table([{"text": 'comma, "quote"\nline'}], "more")
    report.figure(figure, "curve", "Time against depth.")
    report.text("Last words.")
    paths = report.write(tmp_path / "new" / "folder")

    names = ["bench.csv", "bench_more.csv", "bench_curve.png", "bench.md"]
    assert [path.name for path in paths] == names
    assert {path.name for path in (tmp_path / "new/folder").iterdir()} == set(names)
    table, more, curve, page = paths

    with table.open(newline="") as stream:
        found = [
            {k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)
        ]
    assert found == rows
    with more.open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [{"text": 'comma, "quote"\nline'}]
    pixels = plt.imread(curve)
    assert pixels.shape[0] > 100
    assert pixels.std() > 0.05

    text = page.read_text()
    parts = [
        "# How fast?",
        "| seed | 7 |",
        "First words.",
        "The first table.",
        "| 1 | 0.3333 |",
        "(bench.csv)",
        "(bench_more.csv)",
        "![Time against depth.](bench_curve.png)",
        "Last words.",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_second_run_replaces_the_first(tmp_path):
    for value in (1, 2):
        report = Report("bench", "Title", seed=0)
        report.table([{"value": value}])
        table, _ = report.write(tmp_path)
    assert table.read_text() == "value\n2\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_figure_is_kept_as_it_was_when_added(tmp_path, figure):
    report = Report("bench", "Title", seed=0)
    report.figure(figure)
    figure.clear()
    [image, _] = report.write(tmp_path)
    assert plt.imread(image).std() > 0.05
    assert plt.fignum_exists(figure.number)


def test_names_are_checked(figure):
    for name in ("", "a/b", "..", "a b", "é"):
        with pytest.raises(ValueError, match="cannot be part of a file's name"):
            Report(name, "Title", seed=0)
    report = Report("bench", "Title", seed=0)
    with pytest.raises(ValueError, match="cannot be part of a file's name"):
        report.table([{"a": 1}], part="../b")
    report.table([{"a": 1}], part="b")
    report.figure(figure, part="b")
    with pytest.raises(ValueError, match=r"already has bench_b\.csv"):
        report.table([{"a": 2}], part="b")


def test_environment_tells_how_to_run_it_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["whatever", "--dataset", "two words"])
    facts = environment(seed=5)
    assert facts["seed"] == "5"
    assert facts["command"].startswith("python ")
    assert facts["command"].endswith(" --dataset 'two words'")
    assert f"Python {sys.version.split()[0]}, torch 2." in facts["versions"]
    assert "for torch" in facts["CPU"]


def test_the_command_is_the_one_that_was_typed(tmp_path):
    (tmp_path / "probe.py").write_text(
        "from benchmarks.report import environment\nprint(environment(3)['command'])\n"
    )
    top = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "probe", "--seed", "3", "--out", "a b"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(top)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "python -m probe --seed 3 --out 'a b'\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_checkout(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert commit_of(tmp_path) == "unknown"
    git("init")
    assert commit_of(tmp_path) == "unknown"
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "--message", "first")
    commit = git("rev-parse", "HEAD")
    assert commit_of(tmp_path) == commit
    (tmp_path / "results").mkdir()
    (tmp_path / "results/b.txt").write_text("not of the checkout")
    assert commit_of(tmp_path) == commit
    (tmp_path / "a.txt").write_text("two")
    assert commit_of(tmp_path) == f"{commit}, changed since"


def test_every_benchmark_has_the_same_options(capsys):
    parser = argument_parser("bench", "What is it?", ["iris", "mnist"])
    defaults = parser.parse_args([])
    assert vars(defaults) == {
        "dataset": "iris",
        "data_dir": None,
        "seed": 0,
        "out": Path("results"),
    }
    given = parser.parse_args(
        ["--dataset", "mnist", "--data-dir", "d", "--seed", "4", "--out", "o"]
    )
    assert vars(given) == {
        "dataset": "mnist",
        "data_dir": "d",
        "seed": 4,
        "out": Path("o"),
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--dataset", "cifar"])
    assert "mnist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "python -m benchmarks.bench" in capsys.readouterr().out
