from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.data.datasets import load_digits, load_iris, load_mnist
from benchmarks.data.large import large_network
from benchmarks.data.models import accuracy, chain, cnn, mlp, resnet18, train
from benchmarks.data.photographs import load_photograph
from benchmarks.data.published import NETWORKS, load_network


def parameters(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_small_networks_have_the_layers_they_name():
    names = [name for name, _ in mlp(4, 3, hidden=(7, 5)).named_children()]
    assert names == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]
    assert [name for name, _ in mlp(4, 3, hidden=()).named_children()] == [
        "flatten",
        "fc1",
    ]
    assert mlp(64, 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    network = cnn((3, 9, 12), 5, channels=(2, 4, 6), hidden=7)
    assert network(torch.rand(2, 3, 9, 12)).shape == (2, 5)
    assert [name for name, _ in network.named_children()][-4:] == [
        "flatten",
        "fc1",
        "relu",
        "fc2",
    ]


@pytest.mark.parametrize(
    "build", [partial(mlp, 4, 3), partial(cnn, (1, 8, 8), 10)], ids=["mlp", "cnn"]
)
def test_a_seed_draws_the_weights_and_nothing_else(build, rng_untouched):
    with rng_untouched():
        first, again, other = build(seed=0), build(seed=0), build(seed=1)
    assert torch.equal(parameters(first), parameters(again))
    assert not torch.equal(parameters(first), parameters(other))


def test_training_repeats_bit_for_bit_and_leaves_random_state_alone(rng_untouched):
    iris = load_iris()

    def trained(seed: int) -> nn.Module:
        model = chain(
            fc1=nn.Linear(4, 8), relu=nn.ReLU(), drop=nn.Dropout(), fc2=nn.Linear(8, 3)
        )
        model.load_state_dict(start)
        with rng_untouched():
            return train(model, iris, seed, epochs=3)

    start = chain(
        fc1=nn.Linear(4, 8), relu=nn.ReLU(), drop=nn.Dropout(), fc2=nn.Linear(8, 3)
    ).state_dict()
    first = trained(0)
    torch.rand(100)
    assert torch.equal(parameters(first), parameters(trained(0)))
    assert not torch.equal(parameters(first), parameters(trained(1)))
    assert not first.training
    # Without dropout, what is left to the seed is the order of the samples.
    ordered = [train(mlp(4, 3), iris, seed, epochs=1) for seed in (0, 0, 1)]
    assert torch.equal(parameters(ordered[0]), parameters(ordered[1]))
    assert not torch.equal(parameters(ordered[0]), parameters(ordered[2]))


def test_training_shows_progress_only_if_asked(capfd):
    train(mlp(4, 3), load_iris(), epochs=1)
    assert capfd.readouterr().err == ""
    train(mlp(4, 3), load_iris(), epochs=1, progress=True)
    assert "train iris" in capfd.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_a_small_cnn_learns_the_digits(seed):
    digits = load_digits(seed)
    model = train(
        cnn((1, 8, 8), 10, seed=seed), digits, seed, epochs=15, learning_rate=3e-3
    )
    assert accuracy(model, digits.x_test, digits.y_test) > 0.93


def test_accuracy_counts_the_right_ones():
    logits = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]]
    classes = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    right = sum(int(a.argmax() == b) for a, b in zip(logits, classes, strict=True))
    for batch_size in (1, 3, 100):
        assert accuracy(nn.Identity(), logits, classes, batch_size) == right / 7


def test_resnet18_has_torchvisions_parameters(rng_untouched):
    with rng_untouched():
        model = resnet18()
    state = model.state_dict()
    # The published count, and one key of each kind.
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert state["layer1.0.conv1.weight"].shape == (64, 64, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.bn2.running_var"].shape == (512,)
    assert state["fc.weight"].shape == (1000, 512)
    assert "layer1.0.downsample.0.weight" not in state
    assert not model.training
    with torch.no_grad():
        out = model(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 1000)
    assert out.std() > 1e-3
    assert torch.equal(parameters(model), parameters(resnet18(seed=0)))


@pytest.mark.parametrize(
    ("name", "n_parameters", "n_outputs"),
    [
        ("mnist_fc_3layer", 109_386, 10),
        ("mnist_cnn_small", 205_730, 10),
        ("mnist_a_adv", 166_406, 10),
        ("cifar_torchvision", 62_006, 10),
        ("resnet20", 269_722, 10),
        ("resnet56", 853_018, 10),
        ("titanic", 278, 2),
        ("california", 6_471, 1),
    ],
)
def test_a_published_network_takes_what_it_says(
    data_dir, rng_untouched, name, n_parameters, n_outputs
):
    with rng_untouched():
        model = load_network(name, data_dir, download=False)
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        out = model(torch.rand(2, *NETWORKS[name].input_shape))
    assert out.shape == (2, n_outputs)


@pytest.mark.parametrize(
    ("name", "published"),
    [("mnist_fc_3layer", 0.9752), ("mnist_cnn_small", 0.9669), ("mnist_a_adv", 0.9633)],
)
def test_a_published_mnist_network_is_as_accurate_as_published(
    data_dir, name, published
):
    mnist = load_mnist(data_dir, n_train=1, download=False)
    model = load_network(name, data_dir, download=False)
    found = accuracy(model, mnist.x_test, mnist.y_test)
    # Of 10,000 images, one may lie so near a boundary that rounding decides.
    assert found == pytest.approx(published, abs=1.5e-4)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_a_published_cifar_network_knows_a_cat(data_dir, name):
    model = load_network(name, data_dir, download=False)
    pixels = torch.stack(
        [load_photograph(photo, 32, data_dir) for photo in ("cat", "chelsea")]
    )
    with torch.no_grad():
        cat = model(NETWORKS[name].from_pixels(pixels)).softmax(dim=1)[:, 3]
    assert (cat > 0.9).all()


def test_a_shortcut_of_the_cifar_networks_drops_pixels_and_adds_empty_channels():
    block = NETWORKS["resnet20"].build().eval().layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 6, 8)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, [0, 2, 4]][..., [0, 2, 4, 6]])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_from_pixels_standardizes_each_channel():
    network = NETWORKS["resnet20"]
    pixels = torch.rand(2, 3, 4, 5)
    found = network.from_pixels(pixels)
    for channel, (mean, std) in enumerate(zip(network.mean, network.std, strict=True)):
        expected = (pixels[:, channel] - mean) / std
        torch.testing.assert_close(found[:, channel], expected)
    assert torch.equal(NETWORKS["mnist_a_adv"].from_pixels(pixels), pixels)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"'vgg'.*resnet20"):
        load_network("vgg")


def test_corrupt_weights_are_refused(tmp_path, data_dir):
    name = "weights/titanic_model.pt"
    (tmp_path / "weights").mkdir()
    content = bytearray((data_dir / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"titanic_model\.pt is cut, corrupt"):
        load_network("titanic", tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters", "shape"),
    [
        ("resnet50", 25_557_032, (3, 224, 224)),  # as torchvision's
        ("vit_tiny", 5_717_416, (3, 224, 224)),  # as timm's
        ("bert", 3_356_930, (32, 256)),
    ],
)
def test_large_networks_have_their_sizes(name, parameters, shape, rng_untouched):
    with rng_untouched():
        model = large_network(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.no_grad():
        assert model(torch.randn(1, *shape)).shape == (1, 2 if name == "bert" else 1000)
    assert not any(m.training for m in model.modules())
