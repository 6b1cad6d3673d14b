"""Small networks with known links, most of them one line of `forward` each."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_nif.tracing.tracer import trace

N = 6
VECTOR, TOKENS, IMAGE = (N, 4), (N, 5, 4), (N, 1, 8, 8)


class Net(nn.Module):
    """Modules by name, and a forward function that gets them as its first argument.

    >>> Net(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    Net(
      (a): Linear(in_features=4, out_features=3, bias=True)
      (b): Linear(in_features=3, out_features=2, bias=True)
    )
    """

    def __init__(
        self,
        run: Callable[..., object],
        **parts: nn.Module | nn.Parameter | Tensor | object,
    ) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def chain(tail: Callable[[Tensor], Tensor], width: int = 6) -> Net:
    """Two linear layers with a function between them."""
    fan_out = tail(torch.randn(2, width)).flatten(1).shape[1]
    return Net(
        lambda m, x: m.b(tail(m.a(x)).flatten(1)),
        a=nn.Linear(4, width),
        b=nn.Linear(fan_out, 2),
    )


def image_chain(tail: Callable[[Tensor], Tensor]) -> Net:
    """A convolution to [N, 3, 4, 4], a function of it, and a linear layer."""
    fan_out = tail(torch.randn(2, 3, 4, 4)).flatten(1).shape[1]
    return Net(
        lambda m, x: m.b(tail(m.a(x)).flatten(1)),
        a=nn.Conv2d(2, 3, 3),
        b=nn.Linear(fan_out, 2),
    )


class ResidualBlock(nn.Module):
    """conv-bn-relu-conv-bn, an in-place add of the shortcut, an in-place ReLU."""

    def __init__(self, n_in: int, n_out: int, option_a: bool = True) -> None:
        super().__init__()
        stride = n_out // n_in
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = None
        if n_in != n_out and not option_a:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif x.shape != y.shape:  # every second pixel, padded with channels of zeros
            extra = y.shape[1] - x.shape[1]
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))
        y += x
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    def __init__(self, option_a: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.block1 = ResidualBlock(2, 2)
        self.block2 = ResidualBlock(2, 4, option_a)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(F.relu(self.stem(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 2, 3, padding=1)
        self.b = nn.Conv2d(2, 3, 3, padding=1)
        self.c = nn.Conv2d(5, 2, 3, padding=1)
        self.fc = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [F.relu(self.a(x))]
        for layer in (self.b, self.c):
            features.append(F.relu(layer(torch.cat(features, 1))))
        return self.fc(torch.cat(features, 1).mean((2, 3)))


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 4, 3)
        self.squeeze = nn.Linear(4, 2)
        self.excite = nn.Linear(2, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.trunk(x))
        gate = F.relu(self.squeeze(x.mean((2, 3))))
        gate = torch.sigmoid(self.excite(gate))
        return self.fc((x * gate[:, :, None, None]).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 2, 3, padding=1)
        self.bottom = nn.Conv2d(2, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        down = F.relu(self.down(x))
        bottom = F.relu(self.bottom(F.max_pool2d(down, 2)))
        return self.head(torch.cat([down, F.relu(self.up(bottom))], 1))


class Attention(nn.Module):
    """Self-attention by hand, with one projection for q, k and v, or with three."""

    def __init__(self, width: int = 4, heads: int = 2, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        if self.fused:
            qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                f(x).view(n, t, self.heads, d // self.heads).transpose(1, 2)
                for f in (self.q, self.k, self.v)
            )
        weights = (q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, d))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, one pre-norm encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 4, 4, stride=4)
        self.token = parameter(1, 1, 4)
        self.position = parameter(1, 5, 4)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class Cells(nn.Module):
    """A recurrent cell, called once for each time step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell
        self.fc = nn.Linear(cell.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class MixtureOfExperts(nn.Module):
    """Each expert sees the samples that its gate chose."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] > 0).long()
        y = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(x[chosen == i])
        return self.fc(y)


def mlp():
    return nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)
    )


def swish(x):
    return x * torch.sigmoid(x)


# --- what tests say about them --------------------------------------------------------


def links_of(model, *inputs, extra=(), layers=None):
    return set(trace(model.eval(), inputs, extra, layers).structure.links)


def arrows(text):
    """``"a > b > c, a > c"`` as a set of links."""
    return {
        pair
        for path in text.split(",")
        for pair in itertools.pairwise(name.strip() for name in path.split(">"))
    }


def means(x: Tensor, axis: int = 1) -> Tensor:
    """Averages over everything but samples (axis 0) and channels."""
    x = x.detach().movedim(axis, 1)
    if x.dim() == 2:
        return x
    return x.flatten(2).double().mean(2).to(x.dtype)


def no_hooks_of_ours(model):
    return not any(
        hook.__self__.__class__.__name__ == "Recorder"
        for m in model.modules()
        for hooks in (m._forward_hooks, m._forward_pre_hooks)
        for hook in hooks.values()
        if hasattr(hook, "__self__")
    )
