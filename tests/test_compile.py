"""Compiled code on disk: used again, and made anew where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import numpy as np
from captum_nif._compile import kernel

@kernel
def double(values):
    return 2 * values.sum()

print(double(np.arange(5)), sum(double.stats.cache_hits.values()))
"""


@pytest.fixture
def run(tmp_path):
    """Runs the program, whose compiled code is below the test's own folder."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path.cwd())}

    def once() -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | cache,
        )
        return done.stdout.strip(), done.stderr

    return once


def files(folder: Path, kind: str) -> list[Path]:
    return [path for path in folder.rglob(f"*.{kind}") if path.is_file()]


def test_compiled_code_is_used_again(run):
    assert run()[0] == "20 0"
    assert run() == ("20 1", "")


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"damaged", "half"])
def test_damaged_files_are_compiled_again_with_a_warning(run, tmp_path, kind, damage):
    run()
    (path,) = files(tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    printed, warned = run()
    assert printed == "20 0"
    assert "UserWarning: The compiled code of double in" in warned
    assert "compiled again" in warned
    assert "program.py" in warned  # at the user's line
    assert run() == ("20 1", "")


def test_code_of_another_version_is_compiled_again_without_a_word(run, tmp_path):
    run()
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("2 * values", "3 * values"))
    printed, warned = run()
    assert printed == "30 0"
    assert warned == ""
