from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toy_models import (
    IMAGE,
    TOKENS,
    VECTOR,
    Attention,
    Cells,
    DenseNet,
    N,
    Net,
    ResNet,
    SqueezeExcitation,
    UNet,
    VisionTransformer,
    arrows,
    chain,
    image_chain,
    links_of,
    means,
    mlp,
    swish,
)

from benchmarks.data.published import NETWORKS, load_network
from captum_nif.tracing.tracer import find_layers, trace

# --- links --------------------------------------------------------------------------

LINKS = {
    "sequential": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        VECTOR,
        "input > 0 > 2",
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
            nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 2)),
        ),
        VECTOR,
        "input > 0.0 > 1.0.0 > 1.1",
    ),
    "whole model is a layer": (lambda: nn.Linear(4, 2), VECTOR, "input > model"),
    "no layer at all": (lambda: nn.ReLU(), VECTOR, "input > output"),
    "norms, pools, dropout": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.Identity(),
            nn.Flatten(),
            nn.LayerNorm(36),
            nn.Linear(36, 2),
        ),
        IMAGE,
        "input > 0 > 9",
    ),
    "residual, padded shortcut": (
        ResNet,
        IMAGE,
        """input > stem > block1.conv1 > block1.conv2 > block2.conv1 > block2.conv2,
        block2.conv2 > fc, stem > block2.conv1, stem > fc, block1.conv2 > fc""",
    ),
    "residual, projected shortcut": (
        lambda: ResNet(option_a=False),
        IMAGE,
        """input > stem > block1.conv1 > block1.conv2 > block2.conv1 > block2.conv2,
        block2.conv2 > fc, stem > block2.conv1, stem > block2.shortcut.0 > fc,
        block1.conv2 > block2.shortcut.0""",
    ),
    "concatenation": (
        DenseNet,
        IMAGE,
        "input > a > b > c > fc, a > c, a > fc, b > fc",
    ),
    "inception": (
        lambda: Net(
            lambda m, x: m.fc(
                torch.cat([m.a(x), m.c(m.b(x)), m.d(F.max_pool2d(x, 3, 1, 1))], 1).mean(
                    (2, 3)
                )
            ),
            a=nn.Conv2d(1, 2, 1),
            b=nn.Conv2d(1, 2, 1),
            c=nn.Conv2d(2, 2, 3, padding=1),
            d=nn.Conv2d(1, 2, 1),
            fc=nn.Linear(6, 2),
        ),
        IMAGE,
        "input > a > fc, input > b > c > fc, input > d > fc",
    ),
    "squeeze-excitation": (
        SqueezeExcitation,
        IMAGE,
        "input > trunk > squeeze > excite > fc, trunk > fc",
    ),
    "unet, spatial output": (
        UNet,
        IMAGE,
        "input > down > bottom > up > head > output, down > head",
    ),
    "depthwise separable": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.Conv2d(4, 6, 1, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        IMAGE,
        "input > 0 > 1 > 2",
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(162, 2)
        ),
        IMAGE,
        "input > 0 > 3",
    ),
    "1d": (
        lambda: nn.Sequential(
            nn.Conv1d(5, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)
        ),
        TOKENS,
        "input > 0 > 3",
    ),
    "3d": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 3, 2),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Flatten(),
            nn.Linear(3, 2),
        ),
        (N, 1, 3, 3, 3),
        "input > 0 > 4",
    ),
    "linear over tokens": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu().mean(1)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > a > b",
    ),
    "tokens merged with samples": (
        lambda: Net(
            lambda m, x: m.b(m.a(x.reshape(-1, 4)).relu().view(N, 5, 3).mean(1)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > a > b",
    ),
    "tokens mixed by their own layer": (
        lambda: Net(
            lambda m, x: m.c((x + m.b(m.a(x).transpose(1, 2)).transpose(1, 2)).mean(1)),
            a=nn.Linear(4, 4),
            b=nn.Linear(5, 5),
            c=nn.Linear(4, 2),
        ),
        TOKENS,
        "input > a > b > c, input > c",
    ),
    "attention, three projections": (
        Attention,
        TOKENS,
        "input > q > proj > output, input > k > proj, input > v > proj",
    ),
    "attention, fused projection": (
        lambda: Attention(fused=True),
        TOKENS,
        "input > qkv > proj > output",
    ),
    "scaled_dot_product_attention": (
        lambda: Net(
            lambda m, x: m.o(
                F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))[:, 0]
            ),
            q=nn.Linear(4, 4),
            k=nn.Linear(4, 4),
            v=nn.Linear(4, 3),
            o=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > q > o, input > k > o, input > v > o",
    ),
    "attention by einsum": (
        lambda: Net(
            lambda m, x: m.o(
                torch.einsum(
                    "nts,nsd->ntd",
                    torch.einsum("ntd,nsd->nts", m.q(x), m.k(x)).softmax(-1),
                    x,
                ).mean(1)
            ),
            q=nn.Linear(4, 4),
            k=nn.Linear(4, 4),
            o=nn.Linear(4, 2),
        ),
        TOKENS,
        "input > q > o, input > k > o, input > o",
    ),
    "vision transformer": (
        VisionTransformer,
        IMAGE,
        # the head reads the class token, which holds no patch itself
        """input > patch > attention > mlp.0 > mlp.2 > head, patch > mlp.0,
        attention > head""",
    ),
    "transformer encoder layer": (
        lambda: Net(
            lambda m, x: m.head(m.layer(x).mean(1)),
            layer=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            head=nn.Linear(4, 2),
        ),
        TOKENS,
        """input > layer.self_attn > layer.linear1 > layer.linear2 > head,
        input > layer.linear1, input > head, layer.self_attn > head""",
    ),
    "multihead attention, sequence first": (
        lambda: Net(
            lambda m, x: m.head(m.att(*[x.transpose(0, 1)] * 3)[0].mean(0)),
            att=nn.MultiheadAttention(4, 2),
            head=nn.Linear(4, 2),
        ),
        TOKENS,
        "input > att > head",
    ),
    "cross attention by keywords": (
        lambda: Net(
            lambda m, x: m.head(
                m.att(query=m.q(x), key=x, value=x, need_weights=False)[0][:, 0]
            ),
            q=nn.Linear(4, 4),
            att=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(4, 2),
        ),
        TOKENS,
        "input > q > att > head, input > att",
    ),
    "lstm, its sequence": (
        lambda: Net(
            lambda m, x: m.fc(m.lstm(x)[0][:, -1]),
            lstm=nn.LSTM(4, 3, batch_first=True),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > lstm > fc",
    ),
    "gru, its last state": (
        lambda: Net(
            lambda m, x: m.fc(m.gru(x)[1][-1]),
            gru=nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > gru > fc",
    ),
    "rnn, time first": (
        lambda: Net(
            lambda m, x: m.fc(m.rnn(x.transpose(0, 1))[0][-1]),
            rnn=nn.RNN(4, 3),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > rnn > fc",
    ),
    "encoder hands its state to a decoder": (
        lambda: Net(
            lambda m, x: m.fc(m.decoder(x, m.encoder(x)[1])[0][:, -1]),
            encoder=nn.LSTM(4, 3, batch_first=True),
            decoder=nn.LSTM(4, 3, batch_first=True),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "input > encoder > decoder > fc, input > decoder",
    ),
    "lstm cells": (
        lambda: Cells(nn.LSTMCell(4, 3)),
        (N, 3, 4),
        """input > cell > cell:1 > cell:2 > fc, input > cell:1, input > cell:2""",
    ),
    "gru cells": (
        lambda: Cells(nn.GRUCell(4, 3)),
        (N, 2, 4),
        "input > cell > cell:1 > fc, input > cell:1",
    ),
    "called three times": (
        lambda: Net(
            lambda m, x: m.b(m.a(m.a(m.a(x).relu()).relu()).relu()),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 2),
        ),
        VECTOR,
        "input > a > a:1 > a:2 > b",
    ),
    "never called": (
        lambda: Net(lambda m, x: m.a(x), a=nn.Linear(4, 2), unused=nn.Linear(4, 2)),
        VECTOR,
        "input > a",
    ),
    "dead branch": (
        lambda: Net(
            lambda m, x: (m.log(m.a(x).tanh()).sum(), m.b(m.a(x)))[1],
            a=nn.Linear(4, 3),
            log=nn.Linear(3, 1),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a:1 > b",
    ),
    "kept for the log": (
        lambda: Net(
            lambda m, x: (setattr(m, "kept", m.a(x).relu()), m.b(m.kept))[1],
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > b",
    ),
    "bilinear": (
        lambda: Net(
            lambda m, x: m.c(m.a(x), m.b(x)),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 2),
            c=nn.Bilinear(3, 2, 2),
        ),
        VECTOR,
        "input > a > c, input > b > c",
    ),
    "one input as a dict to a block": (
        lambda: Net(
            lambda m, x: m.b(m.block({"x": x, "scale": 2.0})),
            block=Net(lambda m, d: m.a(d["x"]) * d["scale"], a=nn.Linear(4, 3)),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > block.a > b",
    ),
    "named output and input": (
        lambda: Net(
            lambda m, x: m.output(m.input(x).relu()),
            input=nn.Linear(4, 3),
            output=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > input:0 > output",
    ),
    "named output but hidden": (
        lambda: Net(
            lambda m, x: m.last(m.output(x).relu()),
            output=nn.Linear(4, 3),
            last=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > output:0 > last",
    ),
    "output shared with a reader": (
        lambda: Net(
            lambda m, x: (lambda y: torch.cat([y, m.b(y)], 1))(m.a(x)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > b > output, a > output",
    ),
    "one number per sample": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu()).squeeze(-1),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 1),
        ),
        VECTOR,
        "input > a > b",
    ),
    "energy": (
        lambda: Net(lambda m, x: (m.a(x) ** 2).sum(1), a=nn.Linear(4, 3)),
        VECTOR,
        "input > a > output",
    ),
    "checkpointed": (
        lambda: Net(
            lambda m, x: m.b(
                checkpoint(lambda y: m.a(y).relu(), x, use_reentrant=False)
            ),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > b",
    ),
    "detached and without gradients": (
        lambda: Net(
            lambda m, x: m.b(torch.no_grad()(m.a)(x.detach()).detach().relu()),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > b",
    ),
    "parametrized": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
            nn.utils.spectral_norm(nn.Linear(3, 2)),
        ),
        VECTOR,
        "input > 0 > 1 > 2",
    ),
    "samples sorted and put back": (
        lambda: Net(
            lambda m, x: (lambda i: m.b(m.a(x[i]).relu())[i.argsort()])(
                x.sum(1).argsort()
            ),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > b > output, input > output",
    ),
    "hypernetwork": (
        lambda: Net(
            lambda m, x: m.b(torch.bmm(m.a(x).view(-1, 3, 4), x[:, :, None])[..., 0]),
            a=nn.Linear(4, 12),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > b, input > b",
    ),
    "shape only": (
        lambda: Net(
            lambda m, x: m.c(m.a(x).view_as(m.b(x)) + torch.zeros_like(m.b(x))),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 3),
            c=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > c",
    ),
    "halves of one buffer": (
        lambda: Net(
            lambda m, x: (
                lambda u, v: (u.add_(m.a(x)), v.add_(m.b(x)), m.c(u) + m.d(v))[2]
            )(*x.new_zeros(len(x), 6).chunk(2, 1)),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 3),
            c=nn.Linear(3, 2),
            d=nn.Linear(3, 2),
        ),
        VECTOR,
        "input > a > c > output, input > b > d > output",
    ),
    "filled buffer": (
        lambda: Net(
            lambda m, x: (
                lambda y: (
                    y[:, :3].copy_(m.a(x)),
                    y[:, 3:].add_(m.b(x)),
                    m.c(y),
                )[2]
            )(x.new_zeros(len(x), 5)),
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 2),
            c=nn.Linear(5, 2),
        ),
        VECTOR,
        "input > a > c, input > b > c",
    ),
}


@pytest.mark.parametrize("case", LINKS, ids=lambda case: case.replace(" ", "-"))
def test_links_by_hand(case):
    build, shape, expected = LINKS[case]
    model = build().eval()
    found = trace(model, (torch.randn(shape),))
    assert set(found.structure.links) == arrows(expected)
    # each link once, layers in topological order, a value for every node
    assert len(found.structure.links) == len(set(found.structure.links))
    names = [layer.name for layer in found.structure.layers]
    assert len(names) == len(set(names))
    assert names[0] == "input"
    assert all(names.index(a) < names.index(b) for a, b in found.structure.links)
    assert [layer.kind for layer in found.structure.layers].count("output") == 1
    assert found.structure.output.kind == "output"
    for layer in found.structure.layers:
        assert found.values[layer.name].shape == (N, layer.size)


# --- values --------------------------------------------------------------------------


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def layer_norm(x):
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-5)


def rms_norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def softmax(x):
    e = (x - x.max(-1, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def relu_by_index(x):
    x[x < 0] = 0
    return x


def relu_by_mask(x):
    x *= x > 0
    return x


def relu_through_a_view(x):
    x.view(-1).relu_()
    return x


def relu_of_the_base(x):
    view = x.view(-1)
    x.relu_()
    return view.view(len(x), -1)


def relu_by_chunks(x):
    for part in x.chunk(2, 1):
        part.clamp_(min=0)
    return x


def relu_by_data(x):
    x.data.relu_()
    return x


def relu_into_data(x):
    x.data = x.relu()
    return x


def relu_written_back(x):
    x[:] = x.relu()
    return x


def relu_by_columns(x):
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, i].relu()
    return out


class CustomRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad


RELU = [
    torch.relu,
    F.relu,
    nn.ReLU(),
    nn.ReLU(inplace=True),
    Tensor.relu_,
    torch.ops.aten.relu.default,
    lambda x: F.relu(x, inplace=True),
    lambda x: torch.clamp(x, min=0, out=torch.empty_like(x)),
    lambda x: torch.clamp(x, min=0, out=x),
    lambda x: torch.maximum(x, torch.zeros(())),
    lambda x: torch.where(x > 0, x, 0),
    lambda x: x.masked_fill(x < 0, 0),
    lambda x: x * (x > 0),
    lambda x: x.clone().copy_(x.relu()),
    lambda x: x.relu().reshape(-1).view(x.shape),
    lambda x: x.relu().t().contiguous().t(),
    lambda x: torch.stack([row.relu() for row in x]),
    lambda x: torch.cat([part.relu() for part in x.chunk(3, 1)], 1),
    lambda x: torch.cat([x.relu(), x.relu()], 1),
    lambda x: torch.stack(x.relu().unbind(1), 1),
    lambda x: x.relu().flip(1),
    lambda x: x.relu().gather(1, x.argsort(1)),
    lambda x: x.relu()[:, torch.tensor([3, 1, 5, 0, 2, 4])],
    lambda x: F.pad(x.relu(), (1, 2), value=7.0),
    lambda x: torch.einsum("nc->cn", x.relu()).T,
    lambda x: x.relu().repeat(1, 2),
    lambda x: x.relu().unsqueeze(0).squeeze(0),
    lambda x: x.relu().double().float(),
    lambda x: checkpoint(torch.relu, x, use_reentrant=False),
    relu_by_index,
    relu_by_mask,
    relu_through_a_view,
    relu_of_the_base,
    relu_by_chunks,
    relu_by_data,
    relu_into_data,
    relu_written_back,
    relu_by_columns,
    CustomRelu.apply,
]


@pytest.mark.parametrize("tail", RELU)
def test_every_way_to_write_a_relu_gives_the_same_value(tail):
    model = chain(tail)
    x = torch.randn(N, 4)
    found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > a > b")
    with torch.no_grad():
        assert torch.equal(found.values["a"], F.relu(model.a(x)))
        assert torch.equal(found.values["b"], model(x))


POINTWISE = {
    "silu": (swish, swish),
    "gelu": (gelu, gelu),
    "layer norm": (layer_norm, layer_norm),
    "rms norm": (rms_norm, rms_norm),
    "softmax": (softmax, softmax),
    "swiglu-like gate of itself": (
        lambda x: x * x.mean(1, keepdim=True).sigmoid(),
        lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    ),
    "scale and shift": (lambda x: x.tanh().mul_(3).add_(1), lambda x: x.tanh() * 3 + 1),
    "l2": (lambda x: F.normalize(x, dim=1), lambda x: F.normalize(x, dim=1)),
    "log softmax": (lambda x: F.log_softmax(x, -1), lambda x: F.log_softmax(x, -1)),
    "own residual": (lambda x: x + x.tanh(), lambda x: x + x.tanh()),
    "multiplied mask": (lambda x: x * (x > 0.1).float(), lambda x: x * (x > 0.1)),
}


@pytest.mark.parametrize("case", POINTWISE, ids=lambda case: case.replace(" ", "-"))
def test_the_value_is_taken_after_activations_and_norms(case):
    tail, plain = POINTWISE[case]
    model, x = chain(tail), torch.randn(N, 4)
    assert torch.equal(trace(model, (x,)).values["a"], plain(model.a(x).detach()))


IMAGES = {
    "flatten": (lambda x: x.relu(), lambda x: x.relu()),
    "view": (lambda x: x.relu().view(len(x), -1), lambda x: x.relu()),
    "reshape": (lambda x: x.relu().reshape(x.size(0), -1), lambda x: x.relu()),
    "channels last, flat": (
        lambda x: x.relu().permute(0, 2, 3, 1).reshape(len(x), -1),
        lambda x: x.relu(),
    ),
    "max pool": (lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2)),
    "average pool": (lambda x: F.avg_pool2d(x, 3, 1), lambda x: F.avg_pool2d(x, 3, 1)),
    "adaptive": (
        lambda x: F.adaptive_max_pool2d(x, (2, 1)),
        lambda x: F.adaptive_max_pool2d(x, (2, 1)),
    ),
    "pool of a merged axis": (
        lambda x: F.max_pool1d(x.flatten(2), 2),
        lambda x: F.max_pool1d(x.flatten(2), 2),
    ),
    "global mean": (lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3))),
    "global max": (lambda x: x.amax((-1, -2)), lambda x: x.amax((-1, -2))),
    "logsumexp": (lambda x: x.logsumexp((2, 3)), lambda x: x.logsumexp((2, 3))),
    "sum of a row": (lambda x: x.sum(3).cumsum(2), lambda x: x.sum(3).cumsum(2)),
    "sorted pixels": (
        lambda x: x.flatten(2).sort(-1).values,
        lambda x: x.flatten(2).sort(-1).values,
    ),
    "largest pixels": (
        lambda x: x.flatten(2).topk(3).values,
        lambda x: x.flatten(2).topk(3).values,
    ),
    "cropped": (lambda x: x[:, :, 1:3, ::2], lambda x: x[:, :, 1:3, ::2]),
    "one pixel": (lambda x: x[..., 0, 0], lambda x: x[..., 0, 0]),
    "reflected": (
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    ),
    "rolled": (lambda x: x.roll((1, 1), (2, 3)), lambda x: x.roll((1, 1), (2, 3))),
    "upsampled": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    ),
    "unfolded": (
        lambda x: F.unfold(x, 2, stride=2),
        lambda x: F.unfold(x, 2, stride=2).view(len(x), 3, 4, -1),
    ),
    "windows": (
        lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2),
        lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2),
    ),
    "shuffled channels": (
        lambda x: x.view(-1, 3, 1, 4, 4).transpose(1, 2).reshape(-1, 3, 4, 4),
        lambda x: x,
    ),
    "blurred": (
        lambda x: F.conv2d(x, torch.full((3, 1, 2, 2), 0.25), stride=2, groups=3),
        lambda x: F.conv2d(x, torch.full((3, 1, 2, 2), 0.25), stride=2, groups=3),
    ),
    "group norm": (lambda x: F.group_norm(x, 3), lambda x: F.group_norm(x, 3)),
    "instance norm": (F.instance_norm, F.instance_norm),
    "spatial softmax": (
        lambda x: x.flatten(2).softmax(-1),
        lambda x: x.flatten(2).softmax(-1),
    ),
    "dropped channels": (
        lambda x: F.dropout2d(x, training=False),
        lambda x: x,
    ),
}


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.replace(" ", "-"))
def test_maps_are_averaged_per_channel(case):
    tail, plain = IMAGES[case]
    model, x = image_chain(tail), torch.randn(N, 2, 6, 6)
    found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > a > b")
    expected = means(plain(model.a(x).detach()).clone())
    torch.testing.assert_close(found.values["a"], expected)


CHANNELS_LOST = {
    "glu": lambda x: F.glu(x, 1),
    "glu by hand": lambda x: x[:, :3] * x[:, 3:].sigmoid(),
    "maxout": lambda x: x.view(-1, 3, 2).amax(2),
    "recombined chunks": lambda x: sum(x.chunk(2, 1)),
    "channels summed": lambda x: x.sum(1, keepdim=True),
    "subset of channels": lambda x: x[:, 1:],
    "a channel twice": lambda x: torch.cat([x, x[:, :1]], 1),
    "channels sorted": lambda x: x.sort(1).values,
    "cumulated": lambda x: x.cumsum(1),
    "best channels": lambda x: x.topk(3, 1).values,
    "differences": lambda x: x.diff(dim=1),
    "flipped and added": lambda x: x + x.flip(1),
    "fixed projection": lambda x: x @ torch.ones(6, 3),
    "gram": lambda x: x[:, :, None] * x[:, None, :],
    "distances": lambda x: torch.cdist(x.view(-1, 3, 2), x.view(-1, 3, 2)),
    "pooled over channels": lambda x: F.max_pool1d(x[:, None], 2),
}


@pytest.mark.parametrize("case", CHANNELS_LOST, ids=lambda case: case.replace(" ", "-"))
def test_what_mixes_channels_does_not_make_the_value(case):
    tail = CHANNELS_LOST[case]
    model, x = chain(lambda x: tail(x.relu())), torch.randn(N, 4)
    found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > a > b")
    assert torch.equal(found.values["a"], model.a(x).detach().relu())


SPECIAL_VALUES = {
    "raw where paths part": (
        lambda: Net(
            lambda m, x: (lambda h: m.c(torch.cat([m.b(h.relu()), h], 1)))(m.a(x)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
            c=nn.Linear(5, 2),
        ),
        VECTOR,
        "a",
        lambda m, x: m.a(x),
    ),
    "after the last common step": (
        lambda: Net(
            lambda m, x: (lambda h: m.c(torch.cat([m.b(h), h.tanh()], 1)))(
                m.a(x).relu()
            ),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
            c=nn.Linear(5, 2),
        ),
        VECTOR,
        "a",
        lambda m, x: m.a(x).relu(),
    ),
    "whatever the order of statements": (
        lambda: Net(
            lambda m, x: (
                lambda h: (lambda t, r: m.c(torch.cat([m.b(r), t], 1)))(h.tanh(), h)
            )(m.a(x).relu()),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
            c=nn.Linear(5, 2),
        ),
        VECTOR,
        "a",
        lambda m, x: m.a(x).relu(),
    ),
    "raw where a part of it is overwritten": (
        lambda: Net(
            lambda m, x: (
                lambda h: (lambda part: m.c(torch.cat([m.b(part), h], 1)))(
                    h.detach()[:, :2].mul_(2)
                )
            )(m.a(x)),
            a=nn.Linear(4, 3),
            b=nn.Linear(2, 2),
            c=nn.Linear(5, 2),
        ),
        VECTOR,
        "a",
        lambda m, x: m.a(x),
    ),
    "paths that meet again": (
        lambda: Net(
            lambda m, x: (lambda h: m.b((h.tanh() * h.sigmoid() + h).exp()))(m.a(x)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        VECTOR,
        "a",
        lambda m, x: (lambda h: (h.tanh() * h.sigmoid() + h).exp())(m.a(x)),
    ),
    "dead paths do not count": (
        lambda: Net(
            lambda m, x: (lambda h: (h.sum().item(), m.b(h), m.c(h.relu()))[2])(m.a(x)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
            c=nn.Linear(3, 2),
        ),
        VECTOR,
        "a",
        lambda m, x: m.a(x).relu(),
    ),
    "before a residual sum": (
        ResNet,
        IMAGE,
        "block1.conv2",
        lambda m, x: (
            lambda h: m.block1.bn2(
                m.block1.conv2(F.relu(m.block1.bn1(m.block1.conv1(h))))
            )
        )(F.relu(m.stem(x))),
    ),
    "between residual blocks": (
        ResNet,
        IMAGE,
        "stem",
        lambda m, x: F.relu(m.stem(x)),
    ),
    "trunk of a gate": (
        SqueezeExcitation,
        IMAGE,
        "trunk",
        lambda m, x: F.relu(m.trunk(x)),
    ),
    "gate": (
        SqueezeExcitation,
        IMAGE,
        "excite",
        lambda m, x: torch.sigmoid(
            m.excite(F.relu(m.squeeze(F.relu(m.trunk(x)).mean((2, 3)))))
        ),
    ),
    "input of a dense block": (DenseNet, IMAGE, "a", lambda m, x: F.relu(m.a(x))),
    "fused projection": (
        lambda: Attention(fused=True),
        TOKENS,
        "qkv",
        lambda m, x: m.qkv(x).transpose(1, 2),
    ),
    "query": (Attention, TOKENS, "q", lambda m, x: m.q(x).transpose(1, 2)),
    "patches of a vision transformer": (
        VisionTransformer,
        IMAGE,
        "patch",  # with the class token, whose channels are its own
        lambda m, x: (
            (
                torch.cat([m.token.expand(N, -1, -1), m.patch(x).flatten(2).mT], 1)
                + m.position
            )[:, 1:].mT
        ),
    ),
    "sequence": (
        lambda: Net(
            lambda m, x: m.fc(m.lstm(x)[0].tanh().flatten(1)),
            lstm=nn.LSTM(4, 3, batch_first=True),
            fc=nn.Linear(15, 2),
        ),
        TOKENS,
        "lstm",
        lambda m, x: m.lstm(x)[0].tanh().mT,
    ),
    "sequence of which the state is read": (
        lambda: Net(
            lambda m, x: m.fc(m.lstm(x)[1][0][-1]),
            lstm=nn.LSTM(4, 3, batch_first=True),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "lstm",
        lambda m, x: m.lstm(x)[0].mT,
    ),
    "last step": (
        lambda: Net(
            lambda m, x: m.fc(m.lstm(x.transpose(0, 1))[0][-1]),
            lstm=nn.LSTM(4, 3),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "lstm",
        lambda m, x: m.lstm(x.transpose(0, 1))[0][-1],
    ),
    "embedding": (
        lambda: Net(
            lambda m, x: m.fc(m.embed(x.long().clamp(0)).relu().flatten(1)),
            embed=nn.Embedding(9, 3),
            fc=nn.Linear(12, 2),
        ),
        VECTOR,
        "embed",
        lambda m, x: m.embed(x.long().clamp(0)).relu().mT,
    ),
    "depthwise blur": (
        lambda: Net(
            lambda m, x: m.b(F.conv2d(m.a(x), m.blur, groups=3).flatten(1)),
            a=nn.Conv2d(1, 3, 3),
            b=nn.Linear(75, 2),
            blur=torch.full((3, 1, 2, 2), 0.25),
        ),
        IMAGE,
        "a",
        lambda m, x: F.conv2d(m.a(x), m.blur, groups=3),
    ),
    "3d map": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu().flatten(1)),
            a=nn.Conv3d(1, 2, 2),
            b=nn.Linear(16, 2),
        ),
        (N, 1, 3, 3, 3),
        "a",
        lambda m, x: m.a(x).relu(),
    ),
    "softmaxed output": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)),
        VECTOR,
        "0",
        lambda m, x: m(x),
    ),
}


@pytest.mark.parametrize(
    "case", SPECIAL_VALUES, ids=lambda case: case.replace(" ", "-")
)
def test_values_by_hand(case):
    build, shape, layer, expected = SPECIAL_VALUES[case]
    model, x = build().eval(), torch.randn(shape)
    with torch.no_grad():
        by_hand = means(expected(model, x))
    torch.testing.assert_close(trace(model, (x,)).values[layer], by_hand)


@pytest.mark.parametrize(
    "zero",
    [
        lambda h: h.__setitem__((slice(None), 0), 0),
        lambda h: h[:, 0].zero_(),
        lambda h: h[:, :1].mul_(0),
        lambda h: h.data[:, 0].fill_(0),
        lambda h: h.mul_(torch.tensor([0.0, 1.0, 1.0])),
    ],
)
def test_a_channel_that_is_overwritten_with_zeros_is_zero(zero):
    model = Net(
        lambda m, x: (lambda h: (zero(h), m.b(h))[1])(m.a(x).relu() + 1),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    )
    x = torch.randn(N, 4)
    found = trace(model, (x,))
    expected = model.a(x).detach().relu() + 1
    expected[:, 0] = 0
    assert set(found.structure.links) == arrows("input > a > b")
    assert torch.equal(found.values["a"], expected)


def test_what_is_wholly_overwritten_by_a_constant_is_one():
    model = Net(
        lambda m, x: (
            lambda h: (h.view(-1).zero_(), m.c(torch.cat([h, m.b(x)], 1)))[1]
        )(m.a(x)),
        a=nn.Linear(4, 3),
        b=nn.Linear(4, 3),
        c=nn.Linear(6, 2),
    )
    assert links_of(model, torch.randn(N, 4)) == arrows("input > b > c")


def test_the_value_is_the_same_whatever_is_done_to_a_kept_tensor_later():
    model = Net(
        lambda m, x: (lambda h: (m.b(h.relu()), h.mul_(100))[0])(m.a(x)),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    )
    x = torch.randn(N, 4)
    assert torch.equal(trace(model, (x,)).values["a"], model.a(x).detach().relu())


# --- inputs and outputs --------------------------------------------------------------


def test_every_input_element_is_a_node():
    x = torch.randn(N, 2, 6, 6)
    found = trace(image_chain(torch.relu), (x,))
    layer = found.structure.layer("input")
    assert (layer.size, layer.kind, layer.shape) == (72, "input", (2, 6, 6))
    assert torch.equal(found.values["input"], x.flatten(1))


def test_two_inputs_one_entering_late():
    model = Net(
        lambda m, x, z: m.b(torch.cat([m.a(x).relu(), z], 1)),
        a=nn.Linear(4, 3),
        b=nn.Linear(5, 2),
    )
    x, z = torch.randn(N, 4), torch.randn(N, 2)
    found = trace(model, (x, z))
    assert set(found.structure.links) == arrows("input0 > a > b, input1 > b")
    assert [layer.name for layer in found.structure.layers] == [
        "input0",
        "input1",
        "a",
        "b",
    ]
    assert torch.equal(found.values["input1"], z)


def test_an_input_that_the_model_ignores_stays_without_links():
    model = Net(lambda m, x, z: m.a(x), a=nn.Linear(4, 3))
    found = trace(model, (torch.randn(N, 4), torch.randn(N, 2)))
    assert set(found.structure.links) == arrows("input0 > a")
    assert found.structure.layer("input1").size == 2


def test_further_arguments_are_constants():
    model = Net(
        lambda m, x, scale, options: m.b(m.a(x) * scale + options["shift"]),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    )
    extra = (torch.rand(N, 1), {"shift": torch.rand(N, 3)})
    x = torch.randn(N, 4)
    found = trace(model, (x,), extra)
    assert set(found.structure.links) == arrows("input > a > b")
    expected = model.a(x) * extra[0] + extra[1]["shift"]
    assert torch.equal(found.values["a"], expected.detach())


def test_token_numbers_are_not_values_but_pixels_are():
    tokens = torch.randint(0, 9, (N, 4))
    model = Net(
        lambda m, x: m.fc(m.embed(x).mean(1)),
        embed=nn.Embedding(9, 3),
        fc=nn.Linear(3, 2),
    )
    assert links_of(model, tokens) == arrows("embed > fc")
    pixels = Net(lambda m, x: m.fc(x.float() / 255), fc=nn.Linear(4, 2))
    assert links_of(pixels, tokens) == arrows("input > fc")


def test_codes_chosen_by_a_layer_link_it_to_their_embedding():
    model = Net(
        lambda m, x: m.fc(m.book(torch.cdist(m.a(x), m.book.weight).argmin(1))),
        a=nn.Linear(4, 3),
        book=nn.Embedding(5, 3),
        fc=nn.Linear(3, 2),
    )
    assert links_of(model, torch.randn(N, 4)) == arrows("input > a > book > fc")


@pytest.mark.parametrize(
    ("tail", "shape"),
    [
        (lambda y: y[:, 0], ()),
        (lambda y: y[:, None], (1, 3)),
        (lambda y: y.softmax(1), (3,)),
    ],
)
def test_the_output_layer_has_the_outputs_shape(tail, shape):
    model = Net(lambda m, x: tail(m.a(x)), a=nn.Linear(4, 3))
    x = torch.randn(N, 4)
    found = trace(model, (x,))
    assert found.structure.output.shape == (shape or (1,))
    with torch.no_grad():
        assert torch.equal(
            found.values[found.structure.output.name], model(x).view(N, -1)
        )


def test_a_spatial_output_has_a_node_per_element():
    model, x = UNet(), torch.randn(N, 1, 8, 8)
    found = trace(model, (x,))
    output = found.structure.output
    assert (output.name, output.size, output.shape) == ("output", 64, (1, 8, 8))
    with torch.no_grad():
        assert torch.equal(found.values["output"], model(x).flatten(1))
    assert found.structure.layer("head").kind == "hidden"


def test_calls_of_one_module_are_layers_of_their_own():
    model = Net(
        lambda m, x: m.b(m.a(m.a(x).relu()).tanh()),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 2),
    )
    x = torch.randn(N, 4)
    values = trace(model, (x,)).values
    with torch.no_grad():
        assert torch.equal(values["a"], model.a(x).relu())
        assert torch.equal(values["a:1"], model.a(model.a(x).relu()).tanh())


def test_one_relu_module_used_twice():
    model = Net(
        lambda m, x: m.c(m.relu(m.b(m.relu(m.a(x))))),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 3),
        c=nn.Linear(3, 2),
        relu=nn.ReLU(inplace=True),
    )
    x = torch.randn(N, 4)
    values = trace(model, (x,)).values
    with torch.no_grad():
        assert torch.equal(values["a"], model.a(x).relu())
        assert torch.equal(values["b"], model.b(model.a(x).relu()).relu())


def test_branches_may_depend_on_the_data():
    model = Net(
        lambda m, x: m.c(m.a(x) if x.sum() > 0 else m.b(x)),
        a=nn.Linear(4, 3),
        b=nn.Linear(4, 3),
        c=nn.Linear(3, 2),
    )
    x = torch.rand(N, 4)
    assert links_of(model, x) == arrows("input > a > c")
    assert links_of(model, -x) == arrows("input > b > c")


# --- layers= --------------------------------------------------------------------------


def test_layers_by_name_and_by_module():
    model, x = mlp(), torch.randn(N, 4)
    by_name = trace(model, (x,), layers=["0", "4"])
    by_module = trace(model, (x,), layers=(model[4], model[0]))
    assert set(by_name.structure.links) == arrows("input > 0 > 4")
    assert by_name.structure == by_module.structure
    # the linear layer between mixes the channels of the first
    assert torch.equal(by_name.values["0"], model[:2](x).detach())


def test_blocks_as_layers():
    model, x = ResNet().eval(), torch.randn(N, 1, 8, 8)
    found = trace(model, (x,), layers=["stem", "block1", "block2", "fc"])
    assert set(found.structure.links) == arrows("input > stem > block1 > block2 > fc")
    with torch.no_grad():
        block1 = model.block1(F.relu(model.stem(x)))
    torch.testing.assert_close(found.values["block1"], means(block1))


def test_activations_as_layers():
    model, x = mlp(), torch.randn(N, 4)
    found = trace(model, (x,), layers=["1", "3"])
    assert set(found.structure.links) == arrows("input > 1 > 3 > output")
    assert torch.equal(found.values["3"], model[:4](x).detach())


@pytest.mark.parametrize(
    ("block", "shape", "axis"),
    [
        (nn.Conv2d(4, 3, 1), (N, 4, 5, 5), 1),
        (nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(inplace=True)), (N, 4, 5, 5), 1),
        (nn.Linear(4, 3), (N, 5, 5, 4), 3),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), TOKENS, 2),
        (nn.Sequential(nn.Conv1d(5, 3, 2), nn.BatchNorm1d(3)), TOKENS, 1),
        (
            Net(
                lambda m, x: m.p(x).flatten(2).transpose(1, 2),
                p=nn.Conv2d(4, 3, 2, stride=2),
            ),
            (N, 4, 4, 4),
            2,
        ),
        (
            Net(
                lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                a=nn.Conv2d(4, 4, 1),
                b=nn.Linear(4, 3),
            ),
            (N, 4, 5, 5),
            1,
        ),
        (nn.ReLU(), (N, 4, 5, 5), 1),
        (nn.Identity(), (N, 4), 1),
    ],
)
def test_the_channel_axis_of_a_block(block, shape, axis):
    model, x = nn.Sequential(block, nn.Flatten()).eval(), torch.randn(shape)
    found = trace(model, (x,), layers=["0"])
    with torch.no_grad():
        expected = means(block(x), axis)
    assert found.structure.links[0] == ("input", "0")
    torch.testing.assert_close(found.values["0"], expected)


@pytest.mark.parametrize(
    ("before", "shape", "axis"),
    [(nn.Conv1d(5, 5, 1), TOKENS, 1), (nn.Linear(4, 4), TOKENS, 2)],
)
def test_the_channel_axis_of_an_activation_is_that_of_what_it_follows(
    before, shape, axis
):
    model, x = nn.Sequential(before, nn.ReLU(), nn.Flatten()), torch.randn(shape)
    found = trace(model, (x,), layers=["1"])
    torch.testing.assert_close(found.values["1"], means(model[:2](x), axis))


def test_an_identity_as_a_layer_is_told_from_what_it_took():
    model = Net(
        lambda m, x: (lambda h: m.b(m.same(h) + h))(m.a(x)),
        a=nn.Linear(4, 3),
        same=nn.Identity(),
        b=nn.Linear(3, 2),
    )
    links = links_of(model, torch.randn(N, 4), layers=["a", "same", "b"])
    assert links == arrows("input > a > same > b, a > b")


def test_an_in_place_layer_hands_on_what_it_wrote():
    model = Net(
        lambda m, x: (lambda h: (m.relu(h), m.b(h))[1])(m.a(x)),
        a=nn.Linear(4, 3),
        relu=nn.ReLU(inplace=True),
        b=nn.Linear(3, 2),
    )
    x = torch.randn(N, 4)
    found = trace(model, (x,), layers=["a", "relu", "b"])
    assert set(found.structure.links) == arrows("input > a > relu > b")
    assert torch.equal(found.values["relu"], model.a(x).detach().relu())
    assert torch.equal(found.values["a"], model.a(x).detach())


def test_what_a_layer_reads_behind_its_arguments_is_a_link():
    inner = Net(lambda m, x: m.a(x) + m.context[0], a=nn.Linear(3, 3), context=[])
    model = Net(
        lambda m, x: (
            m.inner.context.clear(),
            m.inner.context.append(m.c(x).tanh()),
            m.b(m.inner(m.a(x))),
        )[2],
        a=nn.Linear(4, 3),
        c=nn.Linear(4, 3),
        inner=inner,
        b=nn.Linear(3, 2),
    )
    links = links_of(model, torch.randn(N, 4), layers=["a", "c", "inner", "b"])
    assert links == arrows("input > a > inner > b, input > c > inner")


def test_a_shared_module_answers_to_both_paths():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(shared), nn.ReLU(), nn.Sequential(shared))
    x = torch.randn(N, 4)
    assert links_of(model, x) == arrows("input > 0.0 > 0.0:1")
    assert find_layers(model, ["2.0"]) == find_layers(model, ["0.0"]) == {shared: "0.0"}


def test_a_module_named_model_is_not_the_whole():
    model = Net(lambda m, x: m.model(x), model=nn.Linear(4, 2))
    assert list(find_layers(model, ["model"])) == [model.model]
    assert list(find_layers(nn.Linear(4, 2), ["model"]).values()) == ["model"]


def test_what_lies_in_an_attention_is_no_layer():
    model = nn.TransformerEncoderLayer(4, 2, 8)
    assert list(find_layers(model).values()) == ["self_attn", "linear1", "linear2"]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (["0", "nowhere"], ValueError, "no module 'nowhere'; its modules are: 0, 1, 2"),
        ([nn.Linear(2, 2)], ValueError, "Linear in `layers` is not part of"),
        ([3], TypeError, "a module name or a module, got int"),
        ("0", TypeError, "must be a list of module names or modules, a dict.*got '0'"),
        ([], ValueError, "is empty"),
        ([""], ValueError, "no module ''"),
    ],
)
def test_wrong_layers(layers, error, message):
    with pytest.raises(error, match=message):
        trace(mlp(), (torch.randn(N, 4),), layers=layers)


def test_nested_layers_are_refused():
    model = nn.Sequential(mlp(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'0\.2' lies inside the layer '0'"):
        trace(model, (torch.randn(N, 4),), layers=["0", "0.2"])


def test_a_layer_without_part_in_the_output_is_refused():
    model = Net(lambda m, x: m.a(x), a=nn.Linear(4, 2), unused=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="'unused' has no part in the model's output"):
        trace(model, (torch.randn(N, 4),), layers=["a", "unused"])


def test_unknown_names_in_a_structure():
    structure = trace(mlp(), (torch.randn(N, 4),)).structure
    with pytest.raises(
        ValueError, match="no layer '7'; the layers are: input, 0, 2, 4"
    ):
        structure.layer("7")


# --- the autograd graph as a witness --------------------------------------------------


def links_by_autograd(model, x):
    """Links as the autograd graph has them, for models that call each layer once.

    A layer's result is marked by a hook; walking back from what a layer takes, the
    first marks that are met are the layers it reads.
    """
    made, taken = {}, {}

    def before(name, module, args):
        taken[name] = [t.grad_fn for t in args if t.grad_fn is not None]

    def after(name, module, args, out):
        first, *rest = out if isinstance(out, tuple) else (out,)
        first = first.view_as(first)  # a node of the graph for this call alone
        made[first.grad_fn] = name
        return (first, *rest) if rest else first

    names = find_layers(model)
    root = x.clone().requires_grad_() * 1
    made[root.grad_fn] = "input"
    handles = []
    for module, name in names.items():
        handles += [
            module.register_forward_pre_hook(functools.partial(before, name)),
            module.register_forward_hook(functools.partial(after, name)),
        ]
    output = model(root)
    for handle in handles:
        handle.remove()
    taken["output"] = [output.grad_fn]
    links = set()
    for target, stack in taken.items():
        stack, seen = list(stack), set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in made:
                links.add((made[node], target))
            else:
                stack += [parent for parent, _ in node.next_functions]
    return links


@pytest.mark.parametrize(
    "case",
    [
        "nested",
        "norms, pools, dropout",
        "residual, padded shortcut",
        "residual, projected shortcut",
        "concatenation",
        "inception",
        "squeeze-excitation",
        "unet, spatial output",
        "depthwise separable",
        "linear over tokens",
        "tokens mixed by their own layer",
        "attention, three projections",
        "attention, fused projection",
        "attention by einsum",
        "transformer encoder layer",
        "lstm, its sequence",
        "hypernetwork",
        "energy",
    ],
    ids=lambda case: case.replace(" ", "-"),
)
def test_links_are_those_of_the_autograd_graph(case):
    build, shape, _ = LINKS[case]
    model, x = build().eval(), torch.randn(shape)
    structure = trace(model, (x,)).structure
    expected = links_by_autograd(model, x)
    if structure.output.name != "output":  # the output layer is the output
        last = (structure.output.name, "output")
        assert last in expected
        expected = {link for link in expected if link[1] != "output"}
    assert set(structure.links) == expected


# --- random programs ------------------------------------------------------------------

UNARY = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "softmax": lambda x: x.softmax(1),
    "flip": lambda x: x.flip(1),
    "cumsum": lambda x: x.cumsum(1),  # mixes channels
    "view": lambda x: x.view(-1, 2, 2).flatten(1),
    "detach": torch.detach,
}
IN_PLACE = {"sigmoid_": torch.sigmoid_, "mul_": lambda x: x.mul_(0.5)}
OUT_OF_PLACE = {"sigmoid_": torch.sigmoid, "mul_": lambda x: x * 0.5}
BINARY = {"add": torch.add, "mul": torch.mul}


@st.composite
def programs(draw):
    """Steps (operation, variables), and the variables that layers read at the end."""
    steps, n = [], 1
    for _ in range(draw(st.integers(0, 7))):
        name = draw(st.sampled_from([*UNARY, *IN_PLACE, *BINARY]))
        count = 2 if name in BINARY else 1
        steps.append((name, tuple(draw(st.integers(0, n - 1)) for _ in range(count))))
        n += name not in IN_PLACE
    readers = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2))
    return steps, readers


def run(steps, h):
    """All variables after a program that starts from ``h``."""
    variables = [h]
    for name, which in steps:
        operation = {**UNARY, **IN_PLACE, **BINARY}[name]
        result = operation(*(variables[i] for i in which))
        if name not in IN_PLACE:
            variables.append(result)
    return variables


def value_by_enumeration(steps, readers, h):
    """The value rule, word by word: versions, all paths from first to read, the last
    version on every path that still holds the channels of ``h``, in order or not."""
    versions = [(h.clone(), torch.arange(4.0).expand(h.shape), ())]
    current, memory = [0], [0]  # of each variable: its version, and whose memory it has
    for name, which in steps:
        parents = tuple(current[i] for i in which)
        operation = {**UNARY, **BINARY, **OUT_OF_PLACE}[name]
        value = operation(*(versions[p][0] for p in parents))
        channels, *others = (versions[p][1] for p in parents)
        if (
            name == "cumsum"
            or channels is None
            or any(o is None for o in others)
            or any(not torch.equal(o, channels) for o in others)
        ):
            channels = None
        elif name == "flip":
            channels = channels.flip(1)
        versions.append((value, channels, parents))
        made = len(versions) - 1
        if name in IN_PLACE:
            current[which[0]] = made
            for i, owner in enumerate(memory):
                if i != which[0] and owner == memory[which[0]]:
                    versions.append((value, channels, (made,)))
                    current[i] = len(versions) - 1
        else:
            current.append(made)
            memory.append(
                memory[which[0]] if name in ("view", "detach") else len(memory)
            )

    def paths_to(version):
        if not version:
            return [{0}]
        return [p | {version} for q in versions[version][2] for p in paths_to(q)]

    shared = set.intersection(*(p for r in readers for p in paths_to(current[r])))
    last = max(v for v in shared if versions[v][1] is not None)
    value, channels, _ = versions[last]
    return value.gather(1, channels.argsort(1))


# two reads that each go on alone; one version read through two views; both of a view
@example(([("tanh", (0,)), ("silu", (0,))], [1, 2]))
@example(([("view", (0,)), ("view", (0,)), ("sigmoid_", (0,))], [1, 2]))
@example(([("detach", (0,)), ("mul_", (1,)), ("tanh", (0,))], [1, 2]))
@given(programs())
def test_the_value_of_any_program_is_that_of_the_rule(program):
    steps, readers = program
    model = Net(
        lambda m, x: m.out(
            sum(m.get_submodule(f"b{i}")(variables[r]) for i, r in enumerate(readers))
            if (variables := run(steps, m.a(x)))
            else None
        ),
        a=nn.Linear(3, 4),
        out=nn.Linear(2, 2),
        **{f"b{i}": nn.Linear(4, 2) for i in range(len(readers))},
    )
    x = torch.randn(N, 3)
    expected = value_by_enumeration(steps, readers, model.a(x).detach())
    assert torch.equal(trace(model, (x,)).values["a"], expected)


# --- published networks ---------------------------------------------------------------


def test_resnet20(data_dir):
    """Option-A shortcuts: a reader of a sum reads all that were ever added to it."""
    model = load_network("resnet20", data_dir, download=False)
    x = torch.randn(N, 3, 32, 32)
    found = trace(model, (x,))
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    expected = {("input", "conv1")}
    written = ["conv1"]
    for block in blocks:
        expected |= {(source, f"{block}.conv1") for source in written}
        expected.add((f"{block}.conv1", f"{block}.conv2"))
        written.append(f"{block}.conv2")
    expected |= {(source, "linear") for source in written}
    assert set(found.structure.links) == expected
    # 1 input, 9 in blocks, 1 + ... + 9 into blocks, 10 into the last layer
    assert len(found.structure.links) == 1 + 9 + 45 + 10
    assert [layer.size for layer in found.structure.layers] == (
        [3072, 16] + [16] * 6 + [32] * 6 + [64] * 6 + [10]
    )
    with torch.no_grad():
        stem = F.relu(model.bn1(model.conv1(x)))
        block = model.layer1[0]
        inner = F.relu(block.bn1(block.conv1(stem)))
        torch.testing.assert_close(found.values["conv1"], means(stem))
        torch.testing.assert_close(found.values["layer1.0.conv1"], means(inner))
        torch.testing.assert_close(
            found.values["layer1.0.conv2"], means(block.bn2(block.conv2(inner)))
        )
        assert torch.equal(found.values["linear"], model(x))
    assert set(found.structure.links) - {("input", "conv1")} == {
        link for link in links_by_autograd(model, x) if link[1] != "output"
    } - {("input", "conv1")}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_published_networks_agree_with_their_autograd_graphs(name, data_dir):
    model = load_network(name, data_dir, download=False)
    x = torch.randn(N, *NETWORKS[name].input_shape)
    found = trace(model, (x,))
    expected = links_by_autograd(model, x)
    if found.structure.output.name != "output":
        expected = {link for link in expected if link[1] != "output"}
    assert set(found.structure.links) == expected
    with torch.no_grad():
        assert torch.equal(
            found.values[found.structure.output.name], model(x).flatten(1)
        )


# --- neurons as nodes, and values that are exchanged ----------------------------------


def neurons(x, axis=1):
    """All elements of a batch, by channel and then by place."""
    return x.detach().movedim(axis, 1).flatten(1)


NEURONS = {
    # model, input, layer, modules up to its value, axis of the channels, shape
    "vector": (mlp, VECTOR, "0", lambda m: m[:2], 1, (3,)),
    "feature map": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 2, 3),
            nn.Flatten(),
        ),
        IMAGE,
        "0",
        lambda m: m[:4],
        1,
        (4, 3, 3),
    ),
    "one place": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ),
        IMAGE,
        "0",
        lambda m: m[:3],
        1,
        (4,),
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2), nn.Flatten(), nn.Linear(10, 2)
        ),
        TOKENS,
        "0",
        lambda m: m[:2],
        2,
        (3, 5),
    ),
    "channels last": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten()
        ).to(memory_format=torch.channels_last),
        IMAGE,
        "0",
        lambda m: m[:2],
        1,
        (4, 6, 6),
    ),
}


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_are_all_elements_of_a_value(name):
    make, shape, layer, upto, axis, arranged = NEURONS[name]
    model, x = make().eval(), torch.randn(shape)
    found = trace(model, (x,), nodes="neuron")
    assert found.structure.layer(layer).shape == arranged
    torch.testing.assert_close(found.values[layer], neurons(upto(model)(x), axis))
    channels = trace(model, (x,))
    assert found.structure.links == channels.structure.links
    assert found.positions == channels.positions


@pytest.mark.parametrize("name", NEURONS)
def test_what_a_layer_is_fed_reaches_its_readers_and_nothing_else(name):
    make, shape, layer, upto, axis, _ = NEURONS[name]
    model, x = make().eval(), torch.randn(shape)
    kept = x.clone()
    found = trace(model, (x,), nodes="neuron")
    other = torch.randn_like(found.values[layer])
    fed = trace(model, (x,), nodes="neuron", overrides={found.positions[layer]: other})
    assert torch.equal(fed.values[layer], found.values[layer]), "what it gave before"
    value = upto(model)(x).detach()
    read = other.view(value.movedim(axis, 1).shape).movedim(1, axis)
    rest = model[len(upto(model)) :]
    output = fed.structure.output.name
    torch.testing.assert_close(fed.values[output], rest(read).detach().flatten(1))
    assert fed.structure == found.structure
    assert fed.positions == found.positions
    assert torch.equal(x, kept)
    assert torch.equal(model(x), model(kept)), "the model itself is as before"


def test_feeding_what_was_given_changes_nothing():
    for make, shape in ((ResNet, IMAGE), (DenseNet, IMAGE), (UNet, IMAGE)):
        model, x = make().eval(), torch.randn(shape)
        found = trace(model, (x,), nodes="neuron")
        hidden = [k.name for k in found.structure.layers if k.kind == "hidden"]
        assert set(found.positions) == set(hidden)
        fed = {place: found.values[name] for name, place in found.positions.items()}
        again = trace(model, (x,), nodes="neuron", overrides=fed)
        for name, value in found.values.items():
            torch.testing.assert_close(again.values[name], value)


def test_places_do_not_depend_on_the_number_of_samples():
    for make in (ResNet, DenseNet, UNet, SqueezeExcitation):
        model = make().eval()
        found = [
            trace(model, (torch.randn(n, 1, 8, 8),), nodes="neuron").positions
            for n in (1, 2, 8)
        ]
        assert found[0] == found[1] == found[2]


def test_all_readers_take_a_value_from_its_place():
    model = Net(
        lambda m, x: (lambda h: m.b(h) + m.c(h.relu()))(m.a(x)),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
        c=nn.Linear(3, 2),
    )
    x = torch.randn(N, 4)
    found = trace(model, (x,), nodes="neuron")
    other = torch.randn(N, 3)
    fed = trace(
        model, (x,), nodes="neuron", overrides={found.positions["a"]: other}
    ).values
    with torch.no_grad():
        torch.testing.assert_close(fed["b"], model.b(other))
        torch.testing.assert_close(fed["c"], model.c(other.relu()))
        torch.testing.assert_close(
            fed["output"], model.b(other) + model.c(other.relu())
        )


def test_a_state_that_is_read_beside_the_sequence_has_no_place():
    def run(m, x):
        sequence, (state, _) = m.lstm(x)
        return m.fc(state[-1] + sequence.mean(1) if m.both else sequence[:, -1])

    parts = {"lstm": nn.LSTM(4, 3, batch_first=True), "fc": nn.Linear(3, 2)}
    x = torch.randn(TOKENS)
    both = Net(run, **parts, both=True)
    assert "lstm" not in trace(both, (x,), nodes="neuron").positions
    alone = trace(Net(run, **parts, both=False), (x,), nodes="neuron")
    assert "lstm" in alone.positions


CHANNELS_LAST = {
    "tokens": (lambda m, x: m.d(m.a(x).mean(1)), (N, 5, 4), True),
    "tokens by a recurrence": (lambda m, x: m.b(m.r(x)[0].mean(1)), (N, 5, 4), True),
    "tokens by attention": (lambda m, x: m.d(m.t(x, x, x)[0]), (N, 5, 4), True),
    "normalized tokens": (lambda m, x: m.d(m.a(x.softmax(-1))), (N, 5, 4), True),
    "tokens in the order of time": (
        lambda m, x: m.d(m.a(x.transpose(0, 1)).mean(0)),
        (N, 5, 4),
        True,
    ),
    "tokens by two layers": (
        lambda m, x: m.d(m.a(x) + m.a(x).flip(1)),
        (N, 5, 4),
        True,
    ),
    "time by a convolution": (lambda m, x: m.c(x).mean(2), (N, 5, 4), False),
    "tokens by a convolution": (lambda m, x: m.c(x.mT).mean(2), (N, 4, 5), True),
    "mixed tokens": (lambda m, x: m.a(x.mT).mean(1), (N, 4, 5), False),
    "tokens and mixed tokens": (
        lambda m, x: m.a(x).mean(1) + m.a(x.mT).mean(1),
        (N, 4, 4),
        False,
    ),
    "image": (lambda m, x: m.i(x).mean((2, 3)), (N, 3, 4, 4), False),
    "image, channels last": (
        lambda m, x: m.i(x.permute(0, 3, 1, 2)).mean((2, 3)),
        (N, 4, 4, 3),
        True,
    ),
    "flat image": (lambda m, x: m.a(x.flatten(1)), (N, 1, 2, 2), False),
    "vector": (lambda m, x: m.a(x), (N, 4), False),
    "no layer": (lambda m, x: x.mean(1), (N, 5, 4), False),
}


@pytest.mark.parametrize("case", CHANNELS_LAST, ids=lambda c: c.replace(" ", "-"))
def test_the_axis_of_the_features_of_an_input(case):
    run, shape, last = CHANNELS_LAST[case]
    model = Net(
        run,
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
        d=nn.Linear(4 if "attention" in case else 3, 2),
        r=nn.GRU(4, 3, batch_first=True),
        t=nn.MultiheadAttention(4, 2, batch_first=True),
        c=nn.Conv1d(5, 3, 1),
        i=nn.Conv2d(3, 2, 1),
    )
    found = trace(model.eval(), (torch.randn(shape),))
    assert found.channels_last == ({"input"} if last else set())
