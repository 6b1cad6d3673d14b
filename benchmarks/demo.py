"""The whole method in a minute: explain digits and flowers, and look at the result.

    python -m benchmarks.demo

trains a small CNN on 8x8 digits and an MLP on Iris, fits a background, and writes a
saliency figure (NIF beside Integrated Gradients), the Iris attribution matrix and a
table. Where the data folder has MNIST, an MNIST digit joins the figure.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from captum.attr import IntegratedGradients
from captum.attr import visualization as viz
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.data.datasets import Dataset, load_dataset, load_digits, load_iris
from benchmarks.data.models import accuracy, cnn, mlp, train
from benchmarks.report import Report
from captum_nif import NIFAttribution, plot_attribution_matrix

# As in the paper's Fig. 4: red is negative, blue is positive.
RED_WHITE_BLUE = LinearSegmentedColormap.from_list("rwb", ["#c0261f", "w", "#1f4fc0"])


class Explained(NamedTuple):
    """Some images of one data set, with what some methods say of them."""

    name: str
    images: Tensor
    labels: Tensor
    predicted: Tensor
    maps: dict[str, Tensor]
    rows: list[dict[str, object]]


def explain(
    dataset: Dataset, model: nn.Module, chosen: Tensor, background: int
) -> Explained:
    """Fits a background and explains the predicted class of the chosen test images."""
    images, labels = dataset.x_test[chosen], dataset.y_test[chosen]
    # numba compiles on first use, for some seconds in a fresh installation
    NIFAttribution(model).fit(dataset.x_train[:50]).attribute(images[:1], target=0)
    some = dataset.x_test[:30]
    classes = model(some).argmax(dim=1)
    others = (classes + 1) % len(dataset.class_names)
    predicted = model(images).argmax(dim=1)
    methods: dict[str, NIFAttribution | IntegratedGradients] = {
        "NIF": NIFAttribution(model),
        "NIF, faithful": NIFAttribution(model, preset="faithful"),
        "Integrated Gradients": IntegratedGradients(model),
    }
    maps: dict[str, Tensor] = {}
    rows: list[dict[str, object]] = []
    for name, method in methods.items():
        start = time.perf_counter()
        fitted = start
        if isinstance(method, NIFAttribution):
            method.fit(dataset.x_train[:background], show_progress=True)
            fitted = time.perf_counter()
        maps[name] = method.attribute(images, target=predicted).detach()
        explained = time.perf_counter()
        own, other = (method.attribute(some, target=c) for c in (classes, others))
        rows.append(
            {
                "data": dataset.name,
                "test accuracy": accuracy(model, dataset.x_test, dataset.y_test),
                "background": background,
                "method": name,
                "fit, s": fitted - start,
                "per image, s": (explained - fitted) / len(chosen),
                "correlation of two classes' maps": median_correlation(own, other),
            }
        )
    return Explained(dataset.name, images, labels, predicted, maps, rows)


def median_correlation(maps: Tensor, others: Tensor) -> float:
    """How much alike the maps of the same images are: the median of correlations."""
    pairs = zip(maps.flatten(1), others.flatten(1), strict=True)
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]
    return float(torch.stack(correlations).median())


def draw_saliency(sets: list[Explained]) -> Figure:
    """The original and each method's map side by side, a row for each image."""
    rows = sum(len(s.images) for s in sets)
    columns = 1 + len(sets[0].maps)
    figure = Figure(figsize=(2.2 * columns, 2.05 * rows), layout="constrained")
    at = iter(figure.subplots(rows, columns, squeeze=False))
    for group in sets:
        for i, image in enumerate(group.images):
            guess = int(group.predicted[i])
            line = next(at)
            title = f"{group.name}: a {int(group.labels[i])}, predicted {guess}"
            _show(figure, line[0], image, image, "original_image", title)
            for axis, (name, maps) in zip(line[1:], group.maps.items(), strict=True):
                title = f"{name}, class {guess}"
                _show(figure, axis, maps[i], image, "heat_map", title)
    return figure


def _show(
    figure: Figure, axis: Axes, values: Tensor, image: Tensor, method: str, title: str
) -> None:
    # Captum wants rows x columns x colors
    as_array = values.permute(1, 2, 0).detach().numpy()
    original = image.permute(1, 2, 0).numpy()
    if method == "original_image":
        axis.imshow(original, cmap="gray_r")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        return
    viz.visualize_image_attr(
        as_array,
        original,
        method=method,
        sign="all",
        plt_fig_axis=(figure, axis),
        cmap=RED_WHITE_BLUE,
        use_pyplot=False,
    )
    axis.set_title(title, fontsize=9)


class Matrix(NamedTuple):
    """The attribution matrix of a network for a data set, and its standard errors."""

    dataset: Dataset
    values: Tensor
    errors: Tensor
    test_accuracy: float


def iris_matrix(seed: int) -> Matrix:
    """The attribution matrix of an MLP on Iris, [4 features, 3 species]."""
    iris = load_iris(seed)
    model = train(mlp(4, 3, (10, 10), seed), iris, seed, epochs=60, learning_rate=0.01)
    nif = NIFAttribution(model).fit(iris.x_train)
    correct = accuracy(model, iris.x_test, iris.y_test)
    return Matrix(iris, nif.attribution_matrix(), nif.standard_error(), correct)


def draw_matrix(matrix: Matrix) -> Figure:
    """The attribution matrix as a heat map with its numbers."""
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    plot_attribution_matrix(
        matrix.values,
        matrix.dataset.feature_names,
        matrix.dataset.class_names,
        figure.subplots(),
        standard_error=matrix.errors,
    )
    return figure


def first_of_each(labels: Tensor, classes: list[int]) -> Tensor:
    """Index of the first sample of each class."""
    return torch.stack([(labels == c).nonzero()[0, 0] for c in classes])


def with_mnist(data_dir: str | None, seed: int) -> Explained | None:
    """An MNIST digit and its maps, or None where the data folder has no MNIST."""
    try:
        mnist = load_dataset("mnist", data_dir, download=False)
    except FileNotFoundError as missing:
        print(f"MNIST is left out: {missing}")
        return None
    mnist = replace(mnist, x_train=mnist.x_train[:6000], y_train=mnist.y_train[:6000])
    model = cnn((1, 28, 28), 10, channels=(8, 16), hidden=32, seed=seed)
    train(model, mnist, seed, epochs=3, learning_rate=2e-3, progress=True)
    return explain(mnist, model, first_of_each(mnist.y_test, [7]), background=500)


def main() -> None:
    """Runs the demonstration and writes its report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__
    )
    parser.add_argument(
        "--data-dir", help="folder with MNIST (default: as the loaders)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()

    digits = load_digits(options.seed)
    model = cnn((1, 8, 8), 10, channels=(8, 16), hidden=32, seed=options.seed)
    train(model, digits, options.seed, epochs=30, learning_rate=2e-3, progress=True)
    chosen = first_of_each(digits.y_test, [0, 3, 4])
    sets = [explain(digits, model, chosen, background=1000)]
    mnist = with_mnist(options.data_dir, options.seed)
    sets += [mnist] if mnist is not None else []
    matrix = iris_matrix(options.seed)

    report = Report("demo", "Neural Information Flow: a demonstration", options.seed)
    report.table(
        [row for s in sets for row in s.rows],
        "time",
        "What was explained, how long it took, and how much the maps of an image for "
        "two classes are alike (the median over 30 images; 1 is the same map):",
    )
    report.figure(
        draw_saliency(sets),
        "saliency",
        "Left to right: the image; NIF, blue where values along the paths occur "
        "together more often than chance; its preset, blue for the class and red "
        "against it; Integrated Gradients (zero baseline).",
    )
    rows = [
        {"feature": feature, **dict(zip(matrix.dataset.class_names, line, strict=True))}
        for feature, line in zip(
            matrix.dataset.feature_names, matrix.values.tolist(), strict=True
        )
    ]
    report.table(
        rows,
        "iris",
        "Attribution matrix of an MLP on Iris "
        f"(test accuracy {matrix.test_accuracy:.3f}):",
    )
    report.figure(
        draw_matrix(matrix), "iris", "The same as a heat map, with standard errors."
    )
    files = report.write(options.out)
    print(files[-1].read_text())
    print("Written:", ", ".join(str(file) for file in files))


if __name__ == "__main__":
    main()
