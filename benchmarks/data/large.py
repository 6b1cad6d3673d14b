"""Networks of today's sizes with random weights: what they cost, not what they know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data.models import chain, seeded


class _Bottleneck(nn.Module):
    """Three convolutions and a shortcut, as in ResNet-50."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * width
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)


def resnet50(n_classes: int = 1000, seed: int = 0) -> nn.Sequential:
    r"""
    A ResNet-50, for ``[N, 3, 224, 224]``.

    Args:

        n_classes (int, optional): Classes. Default: 1000
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Sequential: The network, in evaluation mode.

    References:

        He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
    """
    stages, n_in = {}, 64
    with seeded(seed):
        for i, (width, count) in enumerate(
            [(64, 3), (128, 4), (256, 6), (512, 3)], start=1
        ):
            blocks = []
            for k in range(count):
                blocks.append(_Bottleneck(n_in, width, 2 if i > 1 and k == 0 else 1))
                n_in = 4 * width
            stages[f"layer{i}"] = nn.Sequential(*blocks)
        return chain(
            conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            **stages,
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(n_in, n_classes),
        ).eval()


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, t, d))


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    r"""
    ViT-Tiny (patches of 16, 12 blocks of width 192), for ``[N, 3, 224, 224]``.

    References:

        Touvron et al., Training data-efficient image transformers, ICML 2021.
    """

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, stride=16)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 197, width))
        self.blocks = nn.Sequential(*(_Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [N, 1000]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Bert(nn.Module):
    r"""
    An encoder of text, 4 layers of width 256, for embedded tokens ``[N, T, 256]``.

    References:

        Devlin et al., BERT, NAACL 2019; Turc et al., arXiv 1908.08962 (the sizes).
    """

    def __init__(self, width: int = 256, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, 512, width))
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [N, 2]."""
        x = self.encoder(self.norm(x + self.position[:, : x.shape[1]]))
        return self.classifier(self.pooler(x[:, 0]).tanh())


def large_network(name: str, seed: int = 0) -> nn.Module:
    r"""
    One of the networks by name.

    Args:

        name (str): ``"resnet50"``, ``"vit_tiny"`` or ``"bert"``.
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Module: The network, in evaluation mode.
    """
    if name == "resnet50":
        return resnet50(seed=seed)
    with seeded(seed):
        return (VisionTransformer() if name == "vit_tiny" else Bert()).eval()
