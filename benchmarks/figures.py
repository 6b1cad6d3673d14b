"""The pictures of the README and the pages beside them, each made from nothing.

    python -m benchmarks.figures --out docs

trains small networks on Iris, on Banknote and on 8x8 digits, and draws their flow
graphs, as in the paper's Fig. 2, with attribution matrices and a saliency map. The
Iris and digits networks are written as interactive pages as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from benchmarks.data.datasets import Dataset, load_banknote, load_digits, load_iris
from benchmarks.data.models import accuracy, cnn, mlp, train
from benchmarks.report import Report, argument_parser
from captum_nif import FlowGraph, NIFAttribution
from captum_nif.plotting.flow_figure import plot_flow
from captum_nif.plotting.heatmaps import plot_attribution_matrix, plot_saliency
from captum_nif.plotting.page import save_html

NETWORKS = ("iris", "banknote", "digits")


class Shown(NamedTuple):
    """A trained network with its population graph."""

    dataset: Dataset
    model: nn.Module
    nif: NIFAttribution
    graph: FlowGraph


def show(name: str, data_dir: str | None, seed: int) -> Shown:
    """Trains the network for a data set, and finds its population graph."""
    if name == "digits":
        dataset = load_digits(seed)
        model = cnn((1, 8, 8), 10, channels=(8, 16), hidden=32, seed=seed)
        train(model, dataset, seed, epochs=30, learning_rate=2e-3)
    else:
        iris = name == "iris"
        dataset = load_iris(seed) if iris else load_banknote(data_dir, seed)
        model = mlp(4, len(dataset.class_names), (8, 5) if iris else (10, 10), seed)
        train(model, dataset, seed, epochs=60, learning_rate=0.01)
    nif = NIFAttribution(model).fit(dataset.x_train)
    return Shown(dataset, model, nif, named(nif.flow(), dataset))


def named(graph: FlowGraph, dataset: Dataset) -> FlowGraph:
    """The graph with the names of the data set's features and classes."""
    return graph.named(input=dataset.feature_names, output=dataset.class_names)


def draw_flow(graph: FlowGraph) -> Figure:
    """The flow graph."""
    figure = Figure(figsize=(1.6 * max(len(graph.layers), 5), 5.6))
    plot_flow(graph, figure.add_axes((0.01, 0.01, 0.98, 0.98)))
    return figure


def draw_matrix(shown: Shown) -> Figure:
    """The attribution matrix, Eq. 4 on the population graph."""
    shape = shown.dataset.x_train.shape[1:]
    is_image = len(shape) == 3
    figure = Figure(figsize=(7.0, 3.4 if is_image else 2.8), layout="constrained")
    plot_attribution_matrix(
        shown.nif.attribution_matrix(),
        shown.dataset.feature_names,
        shown.dataset.class_names,
        figure.subplots(),
        image_shape=shape if is_image else None,
        standard_error=shown.nif.standard_error(),
    )
    return figure


def draw_saliency(shown: Shown, digits: tuple[int, ...] = (0, 3, 7)) -> Figure:
    """Test images, what speaks for their predicted classes, and what may be noise."""
    dataset = shown.dataset
    first = [int((dataset.y_test == digit).nonzero()[0]) for digit in digits]
    images = dataset.x_test[first]
    predicted = shown.model(images).argmax(1)
    faithful = NIFAttribution(shown.model, preset="faithful").fit(dataset.x_train)
    figure = Figure(figsize=(3.2 * len(digits), 5.6), layout="constrained")
    rows = figure.subplots(2, len(digits))
    explainers = {"NIF": shown.nif, "faithful": faithful}
    for row, (name, nif) in zip(rows, explainers.items(), strict=True):
        maps = nif.attribute(images, target=predicted)
        errors = nif.standard_error(images, target=predicted)
        for n, axes in enumerate(row):
            plot_saliency(
                maps[n], images[n], axes, standard_error=errors[n], cmap="gray_r"
            )
            title = f"{name}: a {digits[n]}, explained as {int(predicted[n])}"
            axes.set_title(title, fontsize=9)
    return figure


def write_page(shown: Shown, path: Path) -> None:
    """The population and the first test sample of each of three classes, as a page."""
    dataset = shown.dataset
    graphs = {"population": shown.graph}
    for label in range(min(3, len(dataset.class_names))):
        first = int((dataset.y_test == label).nonzero()[0])
        (sample,) = shown.nif.flow(dataset.x_test[first : first + 1])
        graphs[f"a test sample: {dataset.class_names[label]}"] = named(sample, dataset)
    save_html(graphs, path, title=f"How information flows: {dataset.name}")


def main() -> None:
    """Makes the pictures, the pages, and a report that shows them."""
    parser = argument_parser(
        "figures", "The pictures of the README.", ["all", *NETWORKS]
    )
    options = parser.parse_args()
    chosen = NETWORKS if options.dataset == "all" else (options.dataset,)

    report = Report("figures", "Flow graphs of small networks", options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(chosen, desc="networks"):
        shown = show(name, options.data_dir, options.seed)
        correct = accuracy(shown.model, shown.dataset.x_test, shown.dataset.y_test)
        about = f"a network for {name} with a test accuracy of {correct:.1%}"
        report.figure(draw_flow(shown.graph), name, f"Flow graph of {about}.")
        report.figure(
            draw_matrix(shown), f"{name}_matrix", f"Attribution matrix of {about}."
        )
        if name == "digits":
            caption = (
                f"Images and their attributions, from {about}. Small squares cannot "
                "be told from 0."
            )
            report.figure(draw_saliency(shown), "digits_saliency", caption)
        if name != "banknote":
            write_page(shown, options.out / f"figures_{name}.html")
    for file in report.write(options.out):
        print(file)


if __name__ == "__main__":
    main()
