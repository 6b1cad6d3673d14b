"""Networks to measure on: small ones to train, and a ResNet-18 with random weights.

Everything random comes from a seed: the caller's random state is neither read nor
moved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.data.datasets import Dataset


def chain(**layers: nn.Module) -> nn.Sequential:
    r"""
    A sequence of layers with readable names.

    Args:

        **layers (nn.Module): The layers by name, in order.

    Returns:

        nn.Sequential: The sequence.

    Examples::

        >>> chain(fc1=nn.Linear(4, 2), relu1=nn.ReLU())
        Sequential(
          (fc1): Linear(in_features=4, out_features=2, bias=True)
          (relu1): ReLU()
        )
    """
    return nn.Sequential(OrderedDict(layers))


def mlp(
    n_features: int, n_classes: int, hidden: Sequence[int] = (10, 10), seed: int = 0
) -> nn.Sequential:
    r"""
    A multilayer perceptron with ReLUs that ends in logits.

    Args:

        n_features (int): Features of one sample, whatever its shape.
        n_classes (int): Classes.
        hidden (Sequence[int], optional): Width of each hidden layer.
            Default: ``(10, 10)``
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Sequential: ``flatten``, then ``fc1``, ``relu1``, ..., ``fcN``.
    """
    widths = [n_features, *hidden, n_classes]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    with seeded(seed):
        for i, (n_in, n_out) in enumerate(pairwise(widths), start=1):
            layers[f"fc{i}"] = nn.Linear(n_in, n_out)
            if i <= len(hidden):
                layers[f"relu{i}"] = nn.ReLU()
    return chain(**layers)


def cnn(
    image_shape: Sequence[int],
    n_classes: int,
    channels: Sequence[int] = (8, 16),
    hidden: int = 32,
    seed: int = 0,
) -> nn.Sequential:
    r"""
    A small convolutional network with ReLUs that ends in logits.

    Every convolution is 3 x 3 with padding, and halves rows and columns through max
    pooling.

    Args:

        image_shape (Sequence[int]): Channels, rows and columns of an image.
        n_classes (int): Classes.
        channels (Sequence[int], optional): Channels after each convolution.
            Default: ``(8, 16)``
        hidden (int, optional): Width of the linear layer before the last. Default: 32
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Sequential: ``conv1``, ``relu1``, ``pool1``, ..., ``flatten``, ``fc1``,
        ``relu``, ``fc2``.
    """
    n_in, rows, columns = image_shape
    layers: dict[str, nn.Module] = {}
    with seeded(seed):
        for i, n_out in enumerate(channels, start=1):
            layers[f"conv{i}"] = nn.Conv2d(n_in, n_out, kernel_size=3, padding=1)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            n_in, rows, columns = n_out, rows // 2, columns // 2
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(n_in * rows * columns, hidden)
        layers["relu"] = nn.ReLU()
        layers["fc2"] = nn.Linear(hidden, n_classes)
    return chain(**layers)


def train(
    model: nn.Module,
    dataset: Dataset,
    seed: int = 0,
    epochs: int = 100,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    progress: bool = False,
) -> nn.Module:
    r"""
    Train a classifier by Adam on the cross entropy of its logits.

    Args:

        model (nn.Module): Trained in place, on the CPU.
        dataset (Dataset): Its training part is used.
        seed (int, optional): Draws the order of the samples, and dropout. Default: 0
        epochs (int, optional): Passes over the training part. Default: 100
        batch_size (int, optional): Samples of a step. Default: 32
        learning_rate (float, optional): Adam's step size. Default: ``1e-3``
        progress (bool, optional): Shows a progress bar. Default: ``False``

    Returns:

        nn.Module: The same model, in evaluation mode.

    Examples::

        >>> from benchmarks.data.datasets import load_iris
        >>> iris = load_iris()
        >>> model = train(mlp(4, 3), iris, epochs=50, learning_rate=0.01)
        >>> accuracy(model, iris.x_test, iris.y_test) > 0.9
        True
    """
    x, y = dataset.x_train, dataset.y_train
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(seed)
    model.train()
    with seeded(seed):
        label = f"train {dataset.name}"
        for _ in tqdm(range(epochs), desc=label, disable=not progress):
            for batch in torch.randperm(len(x), generator=order).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1000) -> float:
    r"""
    Share of samples whose largest logit is their class.

    Args:

        model (nn.Module): A classifier in evaluation mode.
        x (Tensor): Inputs.
        y (Tensor): Classes.
        batch_size (int, optional): Samples run at a time. Default: 1000

    Returns:

        float: The share, in [0, 1].
    """
    guesses = torch.cat([model(batch).argmax(dim=1) for batch in x.split(batch_size)])
    return (guesses == y).double().mean().item()


class _Block(nn.Module):
    """Two convolutions and a shortcut, by the names that torchvision uses."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


def residual_cnn(
    image_shape: Sequence[int],
    n_classes: int,
    channels: int = 16,
    blocks: int = 2,
    seed: int = 0,
) -> nn.Sequential:
    r"""
    A small residual network with batch normalization that ends in logits.

    Args:

        image_shape (Sequence[int]): Channels, rows and columns of an image.
        n_classes (int): Classes.
        channels (int, optional): Channels throughout. Default: 16
        blocks (int, optional): Residual blocks, of two 3 x 3 convolutions each. The
            last one halves rows and columns, by strides, and its shortcut is a
            convolution too; the others keep them. Default: 2
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Sequential: ``conv1``, ``bn1``, ``relu1``, ``block1``, ..., ``blockN``,
        ``pool``, ``flatten``, ``fc``. As in ResNet-18, ReLUs work in place and each is
        used twice in a block.
    """
    with seeded(seed):
        return chain(
            conv1=nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(channels),
            relu1=nn.ReLU(inplace=True),
            **{
                f"block{i}": _Block(channels, channels, stride=2 if i == blocks else 1)
                for i in range(1, blocks + 1)
            },
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * channels, n_classes),
        )


def resnet18(n_classes: int = 1000, seed: int = 0) -> nn.Sequential:
    r"""
    A ResNet-18 with random weights: what an ImageNet network costs, not what it knows.

    Layer names are torchvision's, so that its state dicts load. As there, ReLUs work in
    place and each is used twice in a block.

    Args:

        n_classes (int, optional): Classes. Default: 1000
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Sequential: The network in evaluation mode, for ``[N, 3, 224, 224]``.

    References:

        He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
    """
    widths = [64, 64, 128, 256, 512]
    with seeded(seed):
        model = chain(
            conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            **{
                f"layer{i}": nn.Sequential(
                    _Block(widths[i - 1], widths[i], stride=1 if i == 1 else 2),
                    _Block(widths[i], widths[i], stride=1),
                )
                for i in range(1, 5)
            },
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, n_classes),
        )
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )
    return model.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    r"""
    Seed the global generators of torch and NumPy within the block, then put them back.

    Args:

        seed (int): What both are seeded with.

    Yields:

        None: Nothing.

    Examples::

        >>> with seeded(0):
        ...     first = torch.rand(3)
        >>> with seeded(0):
        ...     torch.equal(first, torch.rand(3))
        True
    """
    of_numpy = np.random.get_state()  # noqa: NPY002  (Captum draws from it)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed every GPU too, and none of them is put back.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
