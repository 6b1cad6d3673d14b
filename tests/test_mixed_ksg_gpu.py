"""The engine for GPUs: interpreted on the CPU against the plain engine, and compiled.

Triton decides on its first import whether it interprets, so that each way has a process
of its own. A program, one PMI, takes the interpreter some 20 ms however many samples
there are: most cases here are few queries among many samples.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_nif.estimators import MixedKSG, fast, gpu, plain
from captum_nif.estimators.terms import Terms

SCALES = ["normal", "standard", "raw"]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU, and PyTorch built for it"
)

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    """Call functions where Triton interprets and all points go to this engine."""
    yield from _process({"TRITON_INTERPRET": "1"}, _take_everything)


@pytest.fixture
def compiling(tmp_path) -> Iterator[Run]:
    """Call functions where Triton compiles, afresh."""
    yield from _process({"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"})


def _process(
    environment: dict[str, str], prepare: Callable[[], None] | None = None
) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, prepare) as pool:
            yield lambda function, *given: pool.submit(function, *given).result()


def _take_everything() -> None:
    torch.set_num_threads(1)
    fast.takes = lambda *points: False
    gpu.takes = lambda *points: True
    gpu._BUDGET, gpu._SIDE = 40, 2  # many blocks, of two variables of y at most


def explained(
    ksg: MixedKSG, x: Tensor, y: Tensor, query: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    return ksg.pmi(x, y, query)


def information(ksg: MixedKSG, x: Tensor, y: Tensor) -> Tensor:
    return ksg.mi(x, y)


def of_the_vector(
    ksg: MixedKSG, x: Tensor, y: Tensor, query: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    return ksg.joint(x, y, query)


def assert_agrees(run: Run, function: Callable[..., Tensor], *given: Any) -> None:
    found = run(function, *given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "takes", lambda *points: False)
        assert torch.equal(found, function(*given))


def variables(n: int, generator: np.random.Generator) -> Tensor:
    """Untied, dependent, heavy-tailed, half at 0, rounded, two values, a constant."""
    gauss = generator.standard_normal((4, n))
    columns = [
        gauss[0],
        0.7 * gauss[0] + gauss[1],
        generator.standard_cauchy(n),
        np.maximum(gauss[2], 0),
        gauss[3].round(1),
        generator.integers(0, 2, n),
        np.full(n, 0.3),
    ]
    return torch.tensor(np.stack(columns, axis=1))


# ---------------------------------------------------------------------- what it finds


@needs_triton
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 4), (8, 3), (9, 1)])
def test_samples_as_the_plain_engine(interpreted, scale, n, k):
    x = variables(n, np.random.default_rng(10 * n + k))
    assert_agrees(interpreted, explained, MixedKSG(k, "corrected", scale), x[:, 2:5], x)
