"""Blocks that the user takes for one layer: which axis their channels lie along."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import (
    IMAGE,
    TOKENS,
    Attention,
    N,
    Net,
    ResNet,
    VisionTransformer,
    arrows,
    links_of,
    means,
    parameter,
)

from captum_nif.tracing.tracer import find_layers, trace

MAPS = (N, 4, 5, 6)


class ConvNeXt(nn.Module):
    """Depthwise convolution, then channels last through norm and linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        h = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        return x + self.mlp(h).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """Attention within windows of a map, channels last, as in Swin."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window, self.attention = window, Attention(width)

    def forward(self, x):
        n, h, w, c = x.shape
        k = self.window
        x = x.roll((1, 1), (1, 2)).view(n, h // k, k, w // k, k, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)
        x = self.attention(x).view(n, h // k, w // k, k, k, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


class Recurrent(nn.Module):
    """A recurrence over places of [N, C, T]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width)

    def forward(self, x):
        return self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)


def conv(run, n_in=4, n_out=3):
    return Net(run, conv=nn.Conv2d(n_in, n_out, 1), linear=nn.Linear(n_out, n_out))


def sequence(run, width=4):
    return Net(
        run,
        linear=nn.Linear(width, width),
        conv=nn.Conv1d(width, width, 3, padding=1),
        norm=nn.LayerNorm(width),
    )


# block, its input, the axis of the channels in its result
BLOCKS = {
    "linear over channels of a map": (
        lambda: Net(
            lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            linear=nn.Linear(4, 8),
        ),
        MAPS,
        1,
    ),
    "convnext": (lambda: ConvNeXt(4), MAPS, 1),
    "windows, channels last": (lambda: Windows(4, 2), (N, 4, 6, 4), 3),
    "windows, channels first": (
        lambda: Net(
            lambda m, x: m.w(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            w=Windows(4, 2),
        ),
        (N, 4, 4, 6),
        1,
    ),
    "convolution, linear, transposed": (
        lambda: sequence(
            lambda m, x: m.linear(m.conv(x).transpose(1, 2)).transpose(1, 2)
        ),
        (N, 4, 7),
        1,
    ),
    "convolution, attention, linear, transposed": (
        lambda: sequence(
            lambda m, x: (
                lambda h: m.linear((h @ h.transpose(1, 2)).softmax(-1) @ h).transpose(
                    1, 2
                )
            )(m.conv(x).transpose(1, 2))
        ),
        (N, 4, 7),
        1,
    ),
    "linear, convolution, transposed": (
        lambda: sequence(lambda m, x: m.conv(m.linear(x).mT).mT),
        (N, 7, 4),
        2,
    ),
    "mixed by tokens last": (  # what the mixer's token layer tells apart
        lambda: Net(lambda m, x: m.b(m.a(x).mT), a=nn.Linear(4, 3), b=nn.Linear(5, 6)),
        TOKENS,
        2,
    ),
    "gated": (
        lambda: conv(lambda m, x: F.glu(torch.cat([m.conv(x)] * 2, 1), 1)),
        MAPS,
        1,
    ),
    "gated, then moved": (
        lambda: Net(
            lambda m, x: F.glu(m.conv(x), 1).movedim(1, -1), conv=nn.Conv2d(4, 6, 1)
        ),
        MAPS,
        3,
    ),
    "sorted channels, then moved": (
        lambda: conv(lambda m, x: m.conv(x).sort(1).values.movedim(1, -1)),
        MAPS,
        3,
    ),
    "normalized, then moved": (
        lambda: conv(lambda m, x: F.group_norm(m.conv(x), 3).movedim(1, 2)),
        MAPS,
        2,
    ),
    "residual of what came in": (
        lambda: sequence(lambda m, x: x + m.linear(m.norm(x).mT.mT)),
        (N, 7, 4),
        2,
    ),
    "two branches, concatenated": (
        lambda: Net(
            lambda m, x: torch.cat([m.a(x), m.b(x)], 1).movedim(1, -1),
            a=nn.Conv2d(4, 2, 1),
            b=nn.Conv2d(4, 3, 1),
        ),
        MAPS,
        3,
    ),
    "matrix of its own": (
        lambda: Net(
            lambda m, x: torch.einsum("nchw,cd->ndhw", x, m.w), w=parameter(4, 3)
        ),
        MAPS,
        1,
    ),
    "recurrent over places": (lambda: Recurrent(4), (N, 4, 7), 1),
    "pooled and widened": (
        lambda: conv(lambda m, x: m.conv(x).mean((2, 3))[:, None].expand(-1, 7, -1)),
        MAPS,
        2,
    ),
    "patches": (
        lambda: Net(
            lambda m, x: m.p(x).flatten(2).transpose(1, 2), p=nn.Conv2d(1, 4, 4, 4)
        ),
        IMAGE,
        2,
    ),
    "an activation in it": (
        lambda: nn.Sequential(nn.Identity(), nn.Conv1d(4, 3, 1), nn.ReLU()),
        (N, 4, 3),
        1,
    ),
}


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.replace(" ", "-"))
def test_channels_are_followed_through_a_block(case):
    build, shape, axis = BLOCKS[case]
    block, x = build().eval(), torch.randn(shape)
    model = nn.Sequential(block, nn.Flatten())
    found = trace(model, (x,), layers=["0"])
    with torch.no_grad():
        expected = means(block(x), axis)
    assert found.structure.layer("0").size == expected.shape[1]
    torch.testing.assert_close(found.values["0"], expected)
    # whatever is inside, the block is one layer of the same links
    assert set(found.structure.links) == arrows("input > 0 > output")


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.replace(" ", "-"))
def test_users_have_the_last_word_on_the_axis(case):
    build, shape, _ = BLOCKS[case]
    block, x = build().eval(), torch.randn(shape)
    model = nn.Sequential(block, nn.Flatten())
    with torch.no_grad():
        out = block(x)
    for axis in (1, -1):
        found = trace(model, (x,), layers={"0": axis})
        expected = means(out, axis % out.dim())
        torch.testing.assert_close(found.values["0"], expected)
    by_module = trace(model, (x,), layers={block: None})
    by_name = trace(model, (x,), layers=["0"])
    assert torch.equal(by_module.values["0"], by_name.values["0"])


def test_the_samples_of_a_block_may_lie_along_another_axis():
    model = Net(
        lambda m, x: m.head(m.block(x).mean(0)),
        block=Net(lambda m, x: m.a(x).transpose(0, 1), a=nn.Linear(4, 3)),
        head=nn.Linear(3, 2),
    )
    x = torch.randn(TOKENS)
    found = trace(model, (x,), layers=["block", "head"])
    assert set(found.structure.links) == arrows("input > block > head")
    with torch.no_grad():
        torch.testing.assert_close(found.values["block"], model.block(x).mean(0))


def test_a_block_of_samples_merged_with_places():
    model = Net(
        lambda m, x: m.head(m.block(x).view(len(x), 5, 3).mean(1)),
        block=Net(lambda m, x: m.a(x).flatten(0, 1), a=nn.Linear(4, 3)),
        head=nn.Linear(3, 2),
    )
    x = torch.randn(TOKENS)
    found = trace(model, (x,), layers=["block", "head"])
    with torch.no_grad():
        torch.testing.assert_close(found.values["block"], model.block.a(x).mean(1))


def test_what_cannot_be_followed_inside_is_told_by_the_functions_that_ran():
    block = Net(
        lambda m, x: torch.trapezoid(m.a(x)[..., None].expand(-1, -1, -1, 2)),
        a=nn.Linear(4, 3),
    )
    x = torch.randn(TOKENS)
    found = trace(nn.Sequential(block, nn.Flatten()), (x,), layers=["0"])
    torch.testing.assert_close(found.values["0"], means(block(x), 2))


def test_an_exception_inside_a_block_leaves_nothing_behind():
    def fail(m, x):
        m.a(x)
        raise LookupError("stop")

    block = Net(fail, a=nn.Linear(4, 3))
    model = nn.Sequential(block, nn.Linear(3, 2))
    with pytest.raises(LookupError, match="stop"):
        trace(model, (torch.randn(N, 4),), layers=["0"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()


def test_wrong_axes():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(N, 4)
    with pytest.raises(ValueError, match=r"'0' lie along axis 2, .* shape \(6, 3\)"):
        trace(model, (x,), layers={"0": 2})
    for axis in ("1", True, 1.0):
        with pytest.raises(TypeError, match="'0' must be an int or None"):
            trace(model, (x,), layers={"0": axis})


# --- layers besides the default -------------------------------------------------------


def test_a_block_besides_the_default_layers():
    model, x = ResNet().eval(), torch.randn(N, 1, 8, 8)
    expected = arrows("input > stem > block1 > block2.conv1 > block2.conv2 > fc") | {
        ("block1", "fc")
    }
    for layers in ("+block1", ["+block1"], {"+block1": None}, {"+block1": 1}):
        assert links_of(model, x, layers=layers) == expected
    two = links_of(model, x, layers=["+block1", "+block2"])
    assert two == arrows("input > stem > block1 > block2 > fc")
    vit = VisionTransformer()
    assert set(find_layers(vit, "+mlp.1").values()) - set(
        find_layers(vit).values()
    ) == {"mlp.1"}


def test_functions_with_parameters_stay_layers_besides_a_named_block():
    model = Net(
        lambda m, x: m.head(m.block(x) @ m.w),
        block=nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)),
        w=parameter(3, 3),
        head=nn.Linear(3, 2),
    )
    x = torch.randn(N, 4)
    assert links_of(model, x, layers="+block") == arrows("input > block > w > head")


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("0", TypeError, "a name after a '\\+', got '0'"),
        ("+9", ValueError, "no module '9'"),
        (["+0", "1"], ValueError, r"or none does; got \['\+0'\] and \['1'\]"),
        ({}, ValueError, "is empty"),
        ("+0.0", ValueError, "'0.0' lies inside the layer '0'"),
    ],
)
def test_wrong_layers_besides_the_default(layers, error, message):
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 3))
    if layers == "+0.0":
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.Linear(3, 2))
        layers = ["+0", "+0.0"]
    with pytest.raises(error, match=message):
        find_layers(model, layers)
