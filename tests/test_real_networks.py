"""Trained networks of the data folder, end to end, with small populations."""

from pathlib import Path

import oracles_ksg
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data.datasets import load_mnist
from benchmarks.data.photographs import PHOTOGRAPHS, load_photograph
from benchmarks.data.published import NETWORKS, load_network
from captum_nif import MixedKSG, NIFAttribution

K = 5
MNIST_LINKS = {
    "mnist_fc_3layer": [("input", "fc1"), ("fc1", "fc2"), ("fc2", "fc3")],
    "mnist_cnn_small": [
        ("input", "conv1"),
        ("conv1", "conv2"),
        ("conv2", "fc1"),
        ("fc1", "fc2"),
    ],
    "mnist_a_adv": [("input", "0"), ("0", "2"), ("2", "5"), ("5", "7")],
}


@pytest.fixture(scope="module")
def digits(data_dir: Path) -> tuple[Tensor, Tensor]:
    """Background and queries."""
    mnist = load_mnist(data_dir, n_train=96, n_test=3, download=False)
    return mnist.x_train, mnist.x_test


@pytest.mark.parametrize("name", MNIST_LINKS)
def test_mnist(name, digits, data_dir):
    background, x = digits
    model = load_network(name, data_dir, download=False)
    labels = torch.zeros(len(background))
    loader = DataLoader(TensorDataset(background, labels), batch_size=40)
    nif = NIFAttribution(model, estimator=MixedKSG(k=K)).fit(loader)
    predicted = model(x).argmax(1)
    found = nif.attribute(x, target=predicted)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert found.isfinite().all()
    whole = NIFAttribution(model, estimator=MixedKSG(k=K)).fit(background)
    assert torch.equal(whole.attribute(x, target=predicted), found)

    graph = nif.flow(x[:1])[0]
    assert [link.ends for link in graph.links] == MNIST_LINKS[name]
    product = torch.linalg.multi_dot([link.weight for link in graph.links])
    expected = product[:, predicted[0]].view(1, 28, 28)
    torch.testing.assert_close(found[0], expected.float())

    # a pixel that is black in all images tells nothing; what tells has either sign
    black = (background == 0).all(0) & (x[0] == 0).all(0)
    assert black.any()
    assert not found[0][black].any()
    assert found[0].min() < 0 < found[0].max()
    assert not torch.equal(nif.attribute(x, target=(predicted + 1) % 10), found)


def test_single_links_of_a_trained_network(digits, data_dir):
    background, x = digits
    model = load_network("mnist_cnn_small", data_dir, download=False)
    nif = NIFAttribution(model, estimator=MixedKSG(k=K)).fit(background)
    weights = {link.ends: link.weight for link in nif.flow(x[:1])[0].links}
    with torch.no_grad():
        both = torch.cat([background, x[:1]])
        maps1 = model.relu1(model.conv1(both))
        maps2 = model.relu2(model.conv2(maps1))
        hidden = model.relu3(model.fc1(maps2.flatten(1)))
    values = {
        "input": both.flatten(1),
        "conv1": maps1.double().flatten(2).mean(2).float(),
        "conv2": maps2.double().flatten(2).mean(2).float(),
        "fc1": hidden,
    }
    for (a, b), i, j in [
        (("input", "conv1"), 14 * 28 + 14, 3),
        (("input", "conv1"), 0, 0),
        (("conv1", "conv2"), 5, 11),
        (("conv2", "fc1"), 7, 100),
    ]:
        xs = [(v,) for v in values[a][:, i].tolist()]
        ys = [(v,) for v in values[b][:, j].tolist()]
        query = xs.pop(), ys.pop()
        expected = oracles_ksg.pmi_of_query(xs, ys, query, K)
        assert weights[a, b][i, j].item() == pytest.approx(expected, abs=1e-9)


def crops(data_dir: Path, per_photograph: int) -> Tensor:
    """Pieces of 32 x 32 pixels, on a diagonal through each photograph."""
    starts = torch.linspace(0, 64, per_photograph).long().tolist()
    pictures = [load_photograph(p, 96, data_dir, download=False) for p in PHOTOGRAPHS]
    return torch.stack([p[:, s : s + 32, s : s + 32] for p in pictures for s in starts])


def test_resnet20(data_dir):
    model = load_network("resnet20", data_dir, download=False)
    pixels = NETWORKS["resnet20"].from_pixels(crops(data_dir, 7))
    background, x = pixels[2:], pixels[:2]
    nif = NIFAttribution(model, estimator=MixedKSG(k=K)).fit(background)
    found = nif.attribute(x, target=[3, 5])
    assert found.shape == x.shape
    assert found.isfinite().all()
    assert found.amin() < 0 < found.amax()

    # every block reads the stem and all blocks before it, and so does the last layer
    blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)]
    stream, links = ["conv1"], [("input", "conv1")]
    for block in blocks:
        links += [(writer, f"{block}.conv1") for writer in stream]
        links += [(f"{block}.conv1", f"{block}.conv2")]
        stream.append(f"{block}.conv2")
    links += [(writer, "linear") for writer in stream]
    graph = nif.flow(x[1:])[0]
    assert {link.ends for link in graph.links} == set(links)
    assert len(graph.links) == len(links) == 65

    sums = graph.normalized("node").path_sums(5).view(3, 32, 32)
    torch.testing.assert_close(found[1], sums.float())
    assert not torch.equal(nif.attribute(x[:1], target=4)[0], found[0])

    by_channel = torch.arange(3).view(1, 3, 1, 1)
    grouped = nif.attribute(x, target=[3, 5], feature_mask=by_channel)
    assert torch.equal(grouped, grouped[..., :1, :1].expand(-1, -1, 32, 32))

    # a channel in the middle: the values that its links were made of
    block: nn.Module = model.layer1[0]
    values = []
    for batch in (background, x[1:]):
        with torch.no_grad():
            h = F.relu(model.bn1(model.conv1(batch)))
            inner = F.relu(block.bn1(block.conv1(h)))
            outer = block.bn2(block.conv2(inner))
        values.append([m.double().flatten(2).mean(2).float() for m in (inner, outer)])
    expected = MixedKSG(k=K).pmi(*values[0], query=tuple(values[1]))[0]
    (link,) = (s for s in graph.links if s.ends == ("layer1.0.conv1", "layer1.0.conv2"))
    torch.testing.assert_close(link.weight, expected, rtol=0, atol=1e-9)
