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
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_nif import set_memory_limit
from captum_nif.estimators import MixedKSG, engine_cpu, engine_gpu

SCALES = ["normal", "raw"]
"""Exact distances, and others; all else about a scale is up to the points."""

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
    with _process(_interpret) as run:
        yield run


@pytest.fixture
def compiling(tmp_path) -> Iterator[Run]:
    """Call functions where Triton compiles, afresh."""
    with _process(_compile_into, str(tmp_path)) as run:
        yield run


@contextmanager
def _process(prepare: Callable[..., None], *given: str) -> Iterator[Run]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, prepare, given) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    engine_cpu.takes = lambda *points: False
    engine_gpu.takes = lambda *points: True
    set_memory_limit(8 * 40)  # many blocks,
    engine_gpu._SIDE = 2  # of two variables of y at most


def _compile_into(folder: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = folder


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
        patch.setattr(engine_cpu, "takes", lambda *points: False)
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
@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 4), (8, 3)])
def test_samples_as_the_plain_engine(interpreted, scale, n, k):
    x = variables(n, np.random.default_rng(10 * n + k))
    ksg = MixedKSG(k, "corrected", scale)
    assert_agrees(interpreted, explained, ksg, x[:, [0, 3]], x[:, [1, 3, 4]])


@needs_triton
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("n", "k", "dtype"),
    [
        (1, 1, torch.float64),
        (15, 15, torch.float32),
        (16, 1, torch.float64),
        (17, 5, torch.float32),
        (200, 10, torch.float64),
        (513, 64, torch.float32),
        (1000, 700, torch.float64),
    ],
)
def test_queries_as_the_plain_engine(interpreted, n, k, dtype, scale):
    everything = variables(n + 1, np.random.default_rng(n + k)).to(dtype)
    samples, query = everything[:n], everything[n:]
    query[:, 0] = samples[0, 0]  # equal to a sample
    pairs = [0, 3, 5], [1, 2, 3, 4, 6]
    x, y = (samples[:, columns] for columns in pairs)
    asked = query[:, pairs[0]], query[:, pairs[1]]
    ksg = MixedKSG(k, "corrected", scale)
    assert_agrees(interpreted, explained, ksg, x, y, asked)


@needs_triton
@pytest.mark.parametrize("scale", SCALES)
def test_lattices_that_tie_but_for_rounding(interpreted, scale):
    pixels = torch.randint(0, 12, (60, 5), generator=torch.Generator().manual_seed(1))
    x = pixels.double() / 255
    near, far = x[:, :2], x[:, 2:] + 1000  # which is less exact
    ksg = MixedKSG(6, "paper", scale)
    assert_agrees(interpreted, explained, ksg, near, far, (near[:1], far[:1]))
    assert_agrees(interpreted, explained, ksg, far, near, (far[:1], near[:1]))


@needs_triton
@pytest.mark.parametrize("scale", SCALES)
def test_vectors_and_averages_as_the_plain_engine(interpreted, scale):
    x = variables(7, np.random.default_rng(3))
    ksg = MixedKSG(2, "corrected", scale)
    assert_agrees(interpreted, information, ksg, x[:, [0, 3]], x[:, [4]])
    assert_agrees(interpreted, of_the_vector, ksg, x[:, [0, 3, 4]], x[:, [1, 5]])
    query = x[:2, [0, 3, 4]], x[:2, [2]]
    assert_agrees(interpreted, of_the_vector, ksg, x[:, [0, 3, 4]], x[:, [2]], query)


@needs_triton
def test_nothing_to_explain(interpreted):
    x = torch.arange(8.0).view(4, 2)
    ksg = MixedKSG(2)
    assert interpreted(information, ksg, x[:, :0], x).shape == (0, 2)
    nobody = x[:0], x[:0]
    assert interpreted(explained, ksg, x, x, nobody).shape == (0, 2, 2)


# ------------------------------------------------------------------- when it is chosen


@needs_triton
def test_trusted_where_right_about_a_small_problem(interpreted):
    assert interpreted(engine_gpu._works, torch.device("cpu"))


def wrong_by_one() -> bool:
    right = engine_gpu.pmi_blocks

    def wrong(*given: Any) -> Iterator[Any]:
        for *where, pmi in right(*given):
            yield *where, pmi + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_gpu, "pmi_blocks", wrong)
        return engine_gpu._works.__wrapped__(torch.device("cpu"))


@needs_triton
def test_not_trusted_where_wrong(interpreted):
    assert not interpreted(wrong_by_one)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton finds the GPU")
def test_not_trusted_where_triton_has_no_driver(compiling, capfd):
    assert not compiling(engine_gpu._works, torch.device("cpu"))
    assert capfd.readouterr() == ("", "")


def test_not_trusted_without_triton(monkeypatch):
    kernels = "captum_nif.estimators.kernels.triton_plane"
    monkeypatch.setitem(sys.modules, kernels, None)
    assert not engine_gpu._works.__wrapped__(torch.device("cpu"))


def test_for_points_on_a_gpu_as_far_as_its_registers_reach(monkeypatch):
    monkeypatch.setattr(engine_gpu, "_works", lambda device: device.index == 0)

    def takes(device: str, references: int) -> bool:
        points: Any = SimpleNamespace(
            device=torch.device(device), references=references
        )
        return engine_gpu.takes(points, points, 3)

    assert takes("cuda:0", engine_gpu.LARGEST - 1)
    assert not takes("cuda:0", engine_gpu.LARGEST)
    assert not takes("cuda:1", 100)
    assert not takes("cpu", 100)


def test_triton_is_not_imported_until_a_gpu_asks_for_it():
    script = (
        "import sys, torch, captum_nif.estimators as e; x = torch.rand(9, 1);"
        "e.MixedKSG(2).mi(x, x); e.MixedKSG(2).joint(x, x);"
        "sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ------------------------------------------------------------------ that it compiles


def compiled(architecture: int, distances: str, block: int) -> set[str]:
    """The forms of the kernel on the way to the machine code of a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from captum_nif.estimators.kernels import triton_plane

    along = "distances_x", "magnitudes_x", "distances_y", "magnitudes_y"
    integers = "width_x", "width_y", "samples", "counts", "k"
    signature = {
        **dict.fromkeys(along, f"*{distances}"),
        **dict.fromkeys(("joint", "margin", "pmi"), "*i64"),
        **dict.fromkeys(integers, "i32"),
        **dict.fromkeys(("roundoff_x", "roundoff_y", "block"), "constexpr"),
    }
    roundoff = 0 if distances == "i32" else 2.0**-49
    values = {"roundoff_x": roundoff, "roundoff_y": roundoff, "block": block}
    source = ASTSource(triton_plane._solve, signature, values)
    return set(triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm)


@needs_triton
def test_compiles_without_a_gpu(compiling):
    # The interpreter runs any Python; the compiler takes Triton's part of it only.
    assert "cubin" in compiling(compiled, 80, "i32", 1024)
    assert "cubin" in compiling(compiled, 90, "fp64", 1024)


# -------------------------------------------------------------------------- on a GPU


@needs_gpu
@pytest.mark.parametrize("scale", ["normal", "standard", "raw"])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (100, 3), (1000, 10), (5000, 200)])
def test_on_a_gpu_as_on_the_cpu(n, k, scale):
    x = variables(n, np.random.default_rng(n))
    on_gpu = x.cuda()
    ksg = MixedKSG(k, "corrected", scale)
    points = ksg.prepare(on_gpu).leave_one_out()
    assert engine_gpu.takes(points, points, k)
    assert torch.equal(ksg.mi(on_gpu, on_gpu).cpu(), ksg.mi(x, x))
    rest, few = x[: n - 1], x[n - 1 :]
    fewer = ksg.with_k(min(k, n - 1))
    found = fewer.pmi(rest.cuda(), rest.cuda(), (few.cuda(), few.cuda()))
    assert torch.equal(found.cpu(), fewer.pmi(rest, rest, (few, few)))
