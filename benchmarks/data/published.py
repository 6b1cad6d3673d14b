"""Networks that others trained and published, with the weights that they published.

:mod:`benchmarks.data.files` finds the files. Weights are loaded as plain tensors, never
unpickled as code.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data.files import PublishedFile, read_published
from benchmarks.data.models import chain


def load_network(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> nn.Module:
    r"""
    A trained network, ready to be explained.

    Args:

        name (str): One of :data:`NETWORKS`.
        data_dir (str or os.PathLike, optional): Folder of data files; see
            :func:`benchmarks.data.files.data_folder`.
        download (bool, optional): Whether a missing file is downloaded.
            Default: ``True``

    Returns:

        nn.Module: The network in evaluation mode. What it takes is told by
        ``NETWORKS[name]``.

    Raises:

        ValueError: There is no network of that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; expected one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    content = read_published(network.file, data_dir, download)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # The CIFAR ResNets were saved within a record, from inside a DataParallel.
    state = {
        key.removeprefix("module."): value
        for key, value in state.get("state_dict", state).items()
    }
    # Built without storage: weights about to be replaced need no random numbers.
    with torch.device("meta"):
        model = network.build()
    model.load_state_dict(state, assign=True)
    return model.eval()


@dataclass(frozen=True)
class PublishedNetwork:
    r"""
    An architecture and the file that holds its weights.

    Args:

        file (PublishedFile): The weights.
        build (Callable): Makes the network that takes them.
        input_shape (tuple[int, ...]): Shape of one sample.
        mean (tuple[float, ...]): With ``std``, what each channel of a pixel in [0, 1]
            was standardized by in training. Default: as it is
        std (tuple[float, ...]): See ``mean``.
    """

    file: PublishedFile
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        r"""
        What the network takes, from images.

        Args:

            pixels (Tensor): Images in [0, 1], ``[N, channels, rows, columns]``.

        Returns:

            Tensor: The same shape.
        """
        mean = pixels.new_tensor(self.mean).view(-1, 1, 1)
        return (pixels - mean) / pixels.new_tensor(self.std).view(-1, 1, 1)


def _mnist_fc_3layer() -> nn.Module:
    return chain(
        flatten=nn.Flatten(),
        fc1=nn.Linear(784, 128),
        relu1=nn.ReLU(),
        fc2=nn.Linear(128, 64),
        relu2=nn.ReLU(),
        fc3=nn.Linear(64, 10),
    )


def _mnist_cnn_small() -> nn.Module:
    return chain(
        conv1=nn.Conv2d(1, 8, kernel_size=4, stride=2, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(8, 16, kernel_size=4, stride=2, padding=1),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(784, 256),
        relu3=nn.ReLU(),
        fc2=nn.Linear(256, 10),
    )


def _mnist_a_adv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _cifar_torchvision() -> nn.Module:
    return chain(
        conv1=nn.Conv2d(3, 6, kernel_size=5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, kernel_size=5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, 10),
    )


def _titanic() -> nn.Module:
    return chain(
        linear1=nn.Linear(12, 12),
        sigmoid1=nn.Sigmoid(),
        linear2=nn.Linear(12, 8),
        sigmoid2=nn.Sigmoid(),
        linear3=nn.Linear(8, 2),
        softmax=nn.Softmax(dim=1),
    )


def _california() -> nn.Module:
    return chain(
        lin1=nn.Linear(8, 100),
        relu1=nn.ReLU(),
        lin2=nn.Linear(100, 50),
        relu2=nn.ReLU(),
        lin3=nn.Linear(50, 10),
        relu3=nn.ReLU(),
        lin4=nn.Linear(10, 1),
    )


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters (option A of the paper)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride = stride
        # New channels are zero, half of them before and half after the old ones.
        self.n_padding = (n_out - n_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.n_padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.n_padding, self.n_padding))
        return F.relu(out + x)


class _CifarResNet(nn.Module):
    """A ResNet for 32 x 32 pixels: three stages of 16, 32 and 64 channels.

    He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, 4.2.
    """

    def __init__(self, blocks_per_stage: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks_per_stage)
        self.layer2 = self._stage(16, 32, blocks_per_stage)
        self.layer3 = self._stage(32, 64, blocks_per_stage)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(n_in: int, n_out: int, n_blocks: int) -> nn.Sequential:
        first = _Block(n_in, n_out, stride=n_out // n_in)
        rest = (_Block(n_out, n_out, stride=1) for _ in range(n_blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


_RAW = "https://raw.githubusercontent.com"
# Commits, not branches: what these addresses give can not change.
_CAPTUM = f"{_RAW}/pytorch/captum/faac08773131888714b15709b28494ebeea7f6eb"
_LIRPA = (
    f"{_RAW}/Verified-Intelligence/auto_LiRPA/a050a3d61f4cb68b108fa7f07dcb3e4d7ef304df"
)
_RESNET = (
    f"{_RAW}/akamaster/pytorch_resnet_cifar10/d5489e8995e81e91ce6b1d69dcc98ad579b0b153"
)


def _captum(name: str, sha256: str) -> PublishedFile:
    return PublishedFile(
        f"weights/{name}",
        sha256,
        (f"{_CAPTUM}/tutorials/models/{name}",),
        credit="The PyTorch team, Captum; BSD-3-Clause",
    )


def _lirpa(name: str, sha256: str) -> PublishedFile:
    return PublishedFile(
        f"weights/{name}",
        sha256,
        (f"{_LIRPA}/examples/vision/pretrained/{name}",),
        credit="The alpha,beta-CROWN Team, auto_LiRPA; BSD-3-Clause",
    )


def _resnet(name: str, sha256: str) -> PublishedFile:
    return PublishedFile(
        f"weights/{name}",
        sha256,
        (f"{_RESNET}/pretrained_models/{name}",),
        credit="Yerlan Idelbayev, pytorch_resnet_cifar10; BSD-2-Clause",
    )


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

NETWORKS = {
    "mnist_fc_3layer": PublishedNetwork(
        _lirpa(
            "mnist_fc_3layer.pth",
            "a29a4e85ee31f59b5350cc0689f88936f70cc2a1bfa831590090566d5c691913",
        ),
        _mnist_fc_3layer,
        (1, 28, 28),
    ),
    "mnist_cnn_small": PublishedNetwork(
        _lirpa(
            "mnist_cnn_small.pth",
            "923f0b1899fdee6ba1e05d491989ea10a8cf93108a90aa73f49744f39d76c09f",
        ),
        _mnist_cnn_small,
        (1, 28, 28),
    ),
    "mnist_a_adv": PublishedNetwork(
        _lirpa(
            "mnist_a_adv.pth",
            "3a1dbfc656e45be2cf6e8ae709c43da0fa0f3b71762c8a0842df72868f2b3459",
        ),
        _mnist_a_adv,
        (1, 28, 28),
    ),
    "cifar_torchvision": PublishedNetwork(
        _captum(
            "cifar_torchvision.pt",
            "228d8332085282b6d2626d1b1b1b17944c760507d9b0cabe318dc6b108acf6e9",
        ),
        _cifar_torchvision,
        (3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "resnet20": PublishedNetwork(
        _resnet(
            "resnet20-12fca82f.th",
            "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
        ),
        lambda: _CifarResNet(3),
        (3, 32, 32),
        **_IMAGENET,
    ),
    "resnet56": PublishedNetwork(
        _resnet(
            "resnet56-4bfd9763.th",
            "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
        ),
        lambda: _CifarResNet(9),
        (3, 32, 32),
        **_IMAGENET,
    ),
    "titanic": PublishedNetwork(
        _captum(
            "titanic_model.pt",
            "8fa9c5cd4ed7a8655291836420d5552191593d97aef21e44de743cccd8184562",
        ),
        _titanic,
        (12,),
    ),
    "california": PublishedNetwork(
        _captum(
            "california_model.pt",
            "89a575eeb47142393497867df27cb2f7567093b10dd46a943fc14db258811c1c",
        ),
        _california,
        (8,),
    ),
}
