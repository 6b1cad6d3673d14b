"""What an explanation costs: time and peak memory beside Captum's methods.

    python -m benchmarks.bench_attribution --dataset digits mnist resnet20 scaling
    python -m benchmarks.bench_attribution --dataset resnet18 --background 1000

Every method runs in one thread on the same samples, one sample a call, the methods
taking turns; times are medians of processor time. NIF's fit is counted apart. Memory is
what a call adds to the process at its peak, in a process of its own, and that process
in all: libraries, model, NIF's fit and what it keeps of its background.

The last of the networks have random weights: a ResNet-18, a ResNet-50 and a ViT-Tiny on
224 x 224 crops of photographs, and an encoder of 32 embedded tokens. They show what
large inputs cost: 9.6 million links into a ResNet-18's first layer. Their background is
streamed, 25 images at a time.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, KernelShap
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.data.datasets import load_digits, load_mnist
from benchmarks.data.large import large_network
from benchmarks.data.models import cnn, mlp, resnet18, train
from benchmarks.data.photographs import PHOTOGRAPHS, load_photograph
from benchmarks.data.published import load_network
from benchmarks.report import Report, argument_parser
from captum_nif import NIFAttribution

LARGE = ("resnet50", "vit_tiny", "bert")
TASKS = ("digits", "mnist", "resnet20", "resnet18", *LARGE)
FITTED: dict[str, dict[str, Any]] = {
    "NIF": {},
    "NIF, faithful": {"preset": "faithful"},
    "NIF, gradient free": {"preset": "gradient_free"},
}
"""Options of the methods that are fitted on a background."""

METHODS = (*FITTED, "IG", "KernelShap")

SLOW_REPEATS = 3
"""Calls of each method, at most, where one takes long."""

SLOW_BATCH = 25
"""Large images run through the model at a time, by any method."""

SLOW_FIT = 5.0
"""Seconds after which a fit is not repeated."""

Explain = Callable[[Tensor, int], object]
DESCRIBED = {
    "NIF": "NIFAttribution(model).fit(background), its defaults",
    "NIF, faithful": 'NIFAttribution(model, preset="faithful").fit(background)',
    "NIF, gradient free": (
        'NIFAttribution(model, preset="gradient_free").fit(background)'
    ),
    "IG": "IntegratedGradients(model), 50 steps, zero baseline (Captum's defaults)",
    "KernelShap": "KernelShap(model), 25 samples, zero baseline (Captum's defaults)",
}


@dataclass(frozen=True)
class Crops:
    """Random crops of photographs, normalized as for ImageNet, made anew on each pass.

    Args:
        count (int): how many.
        side (int): rows and columns of a crop.
        shrunk (int): rows and columns of a photograph that they are cut from.
        seed (int): draws where they lie.
        data_dir (str or None): folder of data files.
    """

    count: int
    side: int
    shrunk: int
    seed: int
    data_dir: str | None

    def __iter__(self) -> Iterator[Tensor]:
        """Yields batches of :data:`SLOW_BATCH`, [B, 3, side, side]."""
        generator = torch.Generator().manual_seed(self.seed)
        photographs = [
            load_photograph(name, self.shrunk, self.data_dir) for name in PHOTOGRAPHS
        ]
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        places = self.shrunk - self.side + 1
        batch = []
        for i in range(self.count):
            row, column = torch.randint(0, places, (2,), generator=generator).tolist()
            photograph = photographs[i % len(photographs)]
            batch.append(
                photograph[:, row : row + self.side, column : column + self.side]
            )
            if len(batch) == SLOW_BATCH or i == self.count - 1:
                yield (torch.stack(batch) - mean) / deviation
                batch = []


@dataclass(frozen=True)
class Task:
    """A model, what it is fitted on, and what is explained."""

    name: str
    model: nn.Module
    background: Tensor | Crops
    samples: Tensor
    methods: tuple[str, ...] = METHODS
    slow: bool = False


def load_task(name: str, data_dir: str | None, seed: int, background: int) -> Task:
    """One of :data:`TASKS`."""
    if name == "digits":
        digits = load_digits(seed)
        model = train(cnn((1, 8, 8), 10, seed=seed), digits, seed, epochs=5)
        return Task(name, model, digits.x_train[:background], digits.x_test[:20])
    if name == "mnist":
        mnist = load_mnist(data_dir)
        model = load_network("mnist_cnn_small", data_dir)
        return Task(name, model, mnist.x_train[:background], mnist.x_test[:20])
    if name == "resnet20":
        model = load_network("resnet20", data_dir)
        patches = photograph_patches(background + 20, data_dir, seed)
        # without the preset: for 190,000 neurons its draws are too few to mean anything
        methods = ("NIF", "IG", "KernelShap")
        return Task(name, model, patches[:background], patches[background:], methods)
    if name == "bert":
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(background + SLOW_REPEATS, 32, 256, generator=generator)
        model = large_network(name, seed)
        parts = tokens[:background], tokens[background:]
        return Task(name, model, *parts, ("NIF, faithful", "IG"), slow=True)
    crops = Crops(background, 224, 320, seed, data_dir)
    explained = torch.cat([*Crops(SLOW_REPEATS, 224, 320, seed + 1, data_dir)])
    if name in LARGE:
        model = large_network(name, seed)
        return Task(name, model, crops, explained, ("NIF, faithful", "IG"), slow=True)
    model = resnet18(seed=seed)
    return Task(name, model, crops, explained, ("NIF", "IG"), slow=True)


def photograph_patches(count: int, data_dir: str | None, seed: int) -> Tensor:
    """Patches of photographs, as CIFAR's networks take them, [count, 3, 32, 32]."""
    return torch.cat([*Crops(count, 32, 128, seed, data_dir)])


def explainer(task: Task, method: str) -> Explain:
    """One of :data:`METHODS`, as a function of one sample and its class."""
    if method in FITTED:
        nif = NIFAttribution(task.model, **FITTED[method]).fit(task.background)
        return lambda x, c: nif.attribute(x, target=c)
    if method == "IG":
        gradients = IntegratedGradients(task.model)
        batch = SLOW_BATCH if task.slow else None
        return lambda x, c: gradients.attribute(x, target=c, internal_batch_size=batch)
    shap = KernelShap(task.model)
    return lambda x, c: shap.attribute(x, target=c)


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def time_task(task: Task, repeats: int) -> list[dict[str, float]]:
    """Median seconds of fits, and of each method's call, the methods taking turns."""
    if task.slow:
        repeats = min(repeats, SLOW_REPEATS)
    methods: dict[str, Explain] = {}
    fits: dict[str, list[float]] = {}
    for name in task.methods:
        # what is fitted in minutes is fitted once
        while len(fits.setdefault(name, [])) < 3 and sum(fits[name]) < SLOW_FIT:
            start = time.process_time()
            methods[name] = explainer(task, name)
            fits[name].append(time.process_time() - start)
    classes = task.model(task.samples).argmax(dim=1).tolist()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for explain in methods.values():  # warm: caches, compiled kernels
        explain(task.samples[:1], classes[0])
    for i in tqdm(range(repeats), desc=f"time {task.name}"):
        at = i % len(classes)
        sample, target = task.samples[at : at + 1], classes[at]
        for name, explain in methods.items():
            times[name].append(seconds(lambda: explain(sample, target)))  # noqa: B023
    return [
        {name: statistics.median(t) for name, t in measured.items()}
        for measured in (fits, times)
    ]


def peak_mebibytes(call: Callable[[], object]) -> float | None:
    """How much a call adds to the resident memory at its peak; None but on Linux."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory hides what is taken
        reset.write_text("5")  # 5: forget the peak so far
    except OSError:
        return None
    before = _status_kib(status, "VmRSS")
    call()
    return (_status_kib(status, "VmHWM") - before) / 1024


def _status_kib(status: Path, key: str) -> int:
    line = next(li for li in status.read_text().splitlines() if li.startswith(key))
    return int(line.split()[1])


def measure_memory(
    name: str, method: str, data_dir: str | None, seed: int, background: int
) -> dict[str, float | None]:
    """Peak of one call, in a process of its own so that no other call is in it."""
    command = [sys.executable, "-m", "benchmarks.bench_attribution", "--memory-of"]
    options = {"name": name, "method": method, "data_dir": data_dir, "seed": seed}
    command.append(json.dumps({**options, "background": background}))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def memory_of(options: Mapping[str, object]) -> dict[str, float | None]:
    """The measured half of :func:`measure_memory`."""
    torch.set_num_threads(1)
    method = options["method"]
    task = load_task(**{k: v for k, v in options.items() if k != "method"})  # type: ignore[arg-type]
    explain = explainer(task, str(method))
    target = int(task.model(task.samples[:1]).argmax())
    explain(task.samples[1:2], target)  # libraries and caches are loaded by now
    before = whole_peak_mebibytes()
    added = peak_mebibytes(lambda: explain(task.samples[:1], target))
    after = whole_peak_mebibytes()
    whole = None if before is None or after is None else max(before, after)
    return {"peak memory, MiB": added, "whole process, MiB": whole}


def whole_peak_mebibytes() -> float | None:
    """Resident memory of the process at its peak so far; None but on Linux."""
    try:
        return _status_kib(Path("/proc/self/status"), "VmHWM") / 1024
    except OSError:
        return None


def scaling(
    seed: int, depths: Sequence[int], widths: Sequence[int], repeats: int
) -> list[dict[str, object]]:
    """Time of an explanation and of the population graph against depth and width."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [("depth", d, [32] * d) for d in depths]
    shapes += [("width", w, [w] * 4) for w in widths]
    rows: list[dict[str, object]] = []
    for axis, size, hidden in tqdm(shapes, desc="scaling"):
        model = mlp(hidden[0], 10, hidden, seed).eval()
        x = torch.randn(500, hidden[0], generator=generator)
        nif = NIFAttribution(model).fit(x)
        nif.attribute(x[:1], target=0)
        explained = [
            seconds(lambda: nif.attribute(x[:1], target=0))  # noqa: B023
            for _ in range(repeats)
        ]
        graphs = [seconds(nif.flow) for _ in range(max(1, repeats // 5))]
        rows.append(
            {
                "varied": axis,
                "size": size,
                "links": sum(link.weight.numel() for link in nif.flow().links),  # type: ignore[union-attr]
                "explanation, s": statistics.median(explained),
                "population graph, s": statistics.median(graphs),
            }
        )
    return rows


def draw_scaling(rows: Sequence[Mapping[str, object]]) -> Figure:
    """Time against depth and width, on logarithmic axes with slopes 1 and 2."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, varied, slope in zip(axes, ("depth", "width"), (1, 2), strict=True):
        shown = [row for row in rows if row["varied"] == varied]
        sizes = [float(str(row["size"])) for row in shown]
        for column in ("explanation, s", "population graph, s"):
            times = [float(str(row[column])) for row in shown]
            axis.plot(sizes, times, "o-", label=column.removesuffix(", s"))
            guide = [times[-1] * (size / sizes[-1]) ** slope for size in sizes]
            axis.plot(sizes, guide, ":", color="grey", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(f"{varied} (dotted: slope {slope})")
    axes[0].set_ylabel("processor time, s")
    axes[0].legend(frameon=False)
    return figure


def main() -> None:
    """Measures and writes the report."""
    tasks = (*TASKS, "scaling")
    parser = argument_parser("bench_attribution", __doc__ or "", tasks, several=True)
    parser.add_argument("--background", type=int, default=500, help="samples fitted")
    parser.add_argument("--repeats", type=int, default=20, help="calls of each method")
    parser.add_argument("--memory-of", type=json.loads, help="for the benchmark itself")
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of)))
        return
    torch.set_num_threads(1)
    report = Report("bench_attribution", "What an explanation costs", options.seed)
    report.text("\n".join(f"- {name}: `{text}`" for name, text in DESCRIBED.items()))
    rows: list[dict[str, object]] = []
    for name in options.dataset:
        if name == "scaling":
            continue
        arguments = (name, options.data_dir, options.seed, options.background)
        task = load_task(*arguments)
        fits, times = time_task(task, options.repeats)
        rows += [
            {
                "task": name,
                "method": method,
                "fit, s": fits[method] if method in FITTED else 0.0,
                "explanation, s": times[method],
                "of IG's time": times[method] / times["IG"],
                **measure_memory(
                    name, method, options.data_dir, options.seed, options.background
                ),
            }
            for method in task.methods
        ]
    if rows:
        report.table(
            rows,
            "methods",
            f"One sample a call, a background of {options.background}, one thread:",
        )
    if "scaling" in options.dataset:
        scaled = scaling(
            options.seed, (1, 2, 4, 8, 16), (16, 32, 64, 128), options.repeats
        )
        report.table(
            scaled,
            "scaling",
            "Time against depth (width 32) and width (depth 4) of an MLP, population "
            "500. The paper: linear in depth, quadratic in width.",
        )
        report.figure(draw_scaling(scaled), "scaling", "The same as a figure.")
    for path in report.write(options.out):
        print(path)
    print((options.out / "bench_attribution.md").read_text())


if __name__ == "__main__":
    main()
