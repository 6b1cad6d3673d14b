"""What all tests share: random state, threads, and the folder of data files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# Before anything imports pyplot: figures are drawn, never shown.
os.environ["MPLBACKEND"] = "Agg"

# How long one example takes depends on the machine and on what is compiled first.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-dir",
        metavar="DIR",
        help="folder with MNIST, Banknote, photographs and trained networks "
        "(default: the environment variable CAPTUM_NIF_DATA)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # One thread: sums come in one order on every machine.
    torch.set_num_threads(1)
    named = config.getoption("--data-dir") or os.environ.get("CAPTUM_NIF_DATA")
    if not named:
        os.environ.pop("CAPTUM_NIF_DATA", None)
        return
    folder = Path(named).resolve()
    if not folder.is_dir():
        raise pytest.UsageError(
            f"the data folder {folder} is not a directory: correct --data-dir or "
            "CAPTUM_NIF_DATA, or leave both out to skip the tests that need it"
        )
    # One place for the fixture, for loaders called without a folder, for notebooks.
    os.environ["CAPTUM_NIF_DATA"] = str(folder)


SLOW = frozenset(
    """test_ablation test_bench_estimators test_bench_network test_faithfulness
    test_independence test_ks_comparison test_mine test_mixed_ksg_engines
    test_mixed_ksg_gpu test_models test_network_real test_path_analysis test_readme
    test_real_networks test_report test_sanity test_signal test_stored_values
    test_trained test_tutorials test_uncertainty_benchmark""".split()
)
"""Test files that train networks, compile kernels, or run programs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they need, so that ``-m "not slow"`` is fast."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The data folder; the test is skipped where there is none."""
    if "CAPTUM_NIF_DATA" not in os.environ:
        pytest.skip("no data folder: give --data-dir or set CAPTUM_NIF_DATA")
    return Path(os.environ["CAPTUM_NIF_DATA"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the global state is what is being set)
    torch.manual_seed(0)


def rng_state() -> tuple[object, ...]:
    """All global random state, in a form that compares by value."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy_state = (kind, keys.tobytes(), *rest)
    return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()


@contextmanager
def _rng_untouched() -> Iterator[None]:
    before = rng_state()
    yield
    for name, old, new in zip(
        ("random", "numpy", "torch"), before, rng_state(), strict=True
    ):
        assert old == new, f"the global random state of {name} was changed"


@pytest.fixture
def rng_untouched() -> Callable[[], AbstractContextManager[None]]:
    """``with rng_untouched():`` fails if its block changes global random state."""
    return _rng_untouched
