"""Labels are checked by what they claim: which elements of a result depend on which.

One oracle knows nothing of families of functions: it changes one sample at a time and
looks at what moves. The other writes sample and channel into the numbers themselves.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_nif.tracing.origins import Labels, average, by_channel
from captum_nif.tracing.record import Record
from captum_nif.tracing.recorder import Recorder
from captum_nif.tracing.selection import Selection

N = 3
SHAPES = {1: (N,), 2: (N, 4), 3: (N, 5, 4), 4: (N, 4, 2, 6)}  # channels: 4, if any
CHANNEL_AXIS = {1: None, 2: 1, 3: 2, 4: 1}


def labels_after(function, x: Tensor) -> tuple[Tensor, Labels]:
    """What a function makes of a layer's result ``x``, and its labels."""
    layer, x = nn.Identity(), x.clone()
    record = Record(layer, (x,), ())
    with Recorder(record, Selection({layer: "a"})), torch.no_grad():
        y = function(layer(x))
    labels = record.node(y).labels
    assert labels is not None
    assert labels.shape == y.shape
    return y, labels


def coded(shape: tuple[int, ...], axis: int | None) -> tuple[Tensor, Tensor]:
    """Tensors that hold the sample and the channel of each element, from 1."""
    rows = torch.arange(1.0, N + 1).view(-1, *(1,) * (len(shape) - 1)).expand(shape)
    channels = torch.ones(shape)
    if axis is not None:
        channels = channels.cumsum(axis)
    return rows.clone(), channels


# --- which sample ---------------------------------------------------------------------

RANK_2 = {
    "relu": torch.relu,
    "softmax": lambda x: x.softmax(-1),
    "implicit softmax": lambda x: F.softmax(x),
    "normalize": F.normalize,
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "mean": lambda x: x.mean(1),
    "var mean": lambda x: torch.var_mean(x, 1)[1],
    "norm": lambda x: x.norm(dim=1),
    "linalg norm": lambda x: torch.linalg.norm(x, dim=-1, keepdim=True),
    "vector norm": lambda x: torch.linalg.vector_norm(x, 3, 1),
    "max": lambda x: x.max(1).values,
    "argmax": lambda x: x.argmax(1),
    "one hot": lambda x: F.one_hot(x.argmax(1), 4),
    "looked up": lambda x: F.embedding(x.argmax(1), torch.eye(4)),
    "rows of a table": lambda x: torch.eye(4)[x.argmax(1)],
    "rows of a table, selected": lambda x: torch.eye(4).index_select(0, x.argmax(1)),
    "columns of a table, selected": lambda x: torch.eye(4).index_select(1, x.argmax(1)),
    "gathered of a table": lambda x: torch.eye(N, 4).cumsum(1).gather(1, x.argsort(1)),
    "taken along a table": lambda x: torch.take_along_dim(
        torch.eye(N, 4).cumsum(1), x.argsort(1), 1
    ),
    "taken of a table": lambda x: torch.arange(4.0).take(x.argsort(1)),
    "kthvalue": lambda x: x.kthvalue(2, 1).values,
    "mode": lambda x: x.mode().values,
    "cumsum": lambda x: x.cumsum(1),
    "cummax": lambda x: x.cummax(1).values,
    "sort": lambda x: x.sort().values,
    "argsort": lambda x: x.argsort().float(),
    "topk": lambda x: x.topk(2).values,
    "glu": F.glu,
    "transposed": lambda x: x.t(),
    "transposed softmax": lambda x: x.T.softmax(0),
    "flipped": lambda x: x.flip(0),
    "rolled samples": lambda x: x.roll(1, 0),
    "repeated samples": lambda x: x.repeat(2, 1),
    "interleaved samples": lambda x: x.repeat_interleave(2, 0),
    "one sample": lambda x: x[1],
    "some samples": lambda x: x[[2, 0]],
    "ones": lambda x: x @ torch.ones(4, 2),
    "matrix from the left": lambda x: torch.ones(2, 4) @ x.T,
    "vector": lambda x: x @ torch.ones(4),
    "mv": lambda x: torch.mv(x, torch.ones(4)),
    "outer, own": lambda x: x[:, :, None] @ x[:, None, :],
    "bmm": lambda x: torch.bmm(x[:, None], x[:, :, None]),
    "addmm": lambda x: torch.addmm(x[:, :2], x, torch.ones(4, 2)),
    "addmm bias": lambda x: torch.addmm(torch.ones(2), x, torch.ones(4, 2)),
    "baddbmm": lambda x: torch.baddbmm(x[:, :1, None], x[:, None], x[:, :, None]),
    "linear": lambda x: F.linear(x, torch.ones(2, 4), torch.ones(2)),
    "einsum": lambda x: torch.einsum("nc,nc->n", x, x),
    "einsum implicit": lambda x: torch.einsum("nc,dc", x, torch.ones(2, 4)),
    "einsum with dots": lambda x: torch.einsum("...c,c->...", x, torch.ones(4)),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(1)),
    "pairwise": lambda x: F.pairwise_distance(x, x.flip(1)),
    "prototypes": lambda x: torch.cdist(x, torch.ones(2, 4)),
    "where": lambda x: torch.where(x > 0, x, -x),
    "scatter": lambda x: torch.zeros(N, 4).scatter(1, x.topk(2).indices, 1.0),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "take along": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
    "masked": lambda x: x.masked_fill(x > 0, 1),
    "selected": lambda x: x.index_select(0, torch.tensor([1, 1])),
    "split": lambda x: torch.cat([x[:1].exp(), x[1:]]),
    "stacked": lambda x: torch.stack([row * 2 for row in x]),
    "padded": lambda x: F.pad(x, (1, 1, 1, 1), value=5.0),
    "constant pad": lambda x: torch.constant_pad_nd(x, (0, 1), 3.0),
    "broadcast": lambda x: torch.broadcast_tensors(x, torch.ones(2, 1, 1))[0],
    "expanded": lambda x: x[None].expand(2, -1, -1),
    "unflattened": lambda x: x.unflatten(1, (2, 2)),
    "as type": lambda x: x.type_as(torch.zeros(1, dtype=torch.double)),
    "noise": lambda x: x + torch.zeros_like(x),
    "grouped": lambda x: F.group_norm(x, 2),
    "inner": lambda x: torch.inner(x, torch.ones(2, 4)),
    "tensordot": lambda x: torch.tensordot(x, torch.ones(4, 2), 1),
    "tensordot by axes": lambda x: (
        torch.tensordot(torch.ones(2, 4), x, dims=([1], [1])).T
    ),
    "addmv": lambda x: torch.addmv(x[:, 0], x, torch.ones(4)),
    "own bilinear": lambda x: F.bilinear(x, x, torch.ones(2, 4, 4)),
    "quantile": lambda x: x.quantile(0.3, 1),
    "added by index": lambda x: torch.zeros(N, 2).index_add(
        1, torch.tensor([0, 1, 1, 0]), x
    ),
    "added by index along samples": lambda x: torch.zeros(N, 8).index_add(
        0, torch.tensor([2, 0, 1]), x.repeat(1, 2)
    ),
    "segments of one sample": lambda x: torch.zeros(N, 2).index_add(
        0, torch.arange(N).repeat_interleave(2), x.view(-1, 2)
    ),
    "segments of one sample, largest": lambda x: (
        x.view(-1, 2)
        .new_zeros(N, 2)
        .scatter_reduce(
            0,
            torch.arange(N).repeat_interleave(2)[:, None].expand(-1, 2),
            x.view(-1, 2),
            "amax",
            include_self=False,
        )
    ),
    "added by scatter": lambda x: torch.zeros(N, 3).scatter_add_(
        1, x.argsort(1).clamp(max=2), x
    ),
    "averaged by scatter": lambda x: x.scatter_reduce(
        1, torch.tensor([0, 1, 1, 3]).expand(N, -1), x, "mean"
    ),
    "copied by index": lambda x: x.index_copy(1, torch.tensor([3, 0]), x[:, :2] * 2),
    "put by index": lambda x: x.index_put(
        (torch.arange(N), torch.tensor([0, 3, 1])), x[:, 2]
    ),
    "filled by index": lambda x: x.index_fill(1, torch.tensor([1]), 2.0),
    "taken": lambda x: x.take(torch.tensor([[0, 5], [4, 4]])),
    "diagonal": lambda x: torch.diag_embed(x),
    "into a slice": lambda x: x.slice_scatter(x[:, :1] * 2, 1, 2, 3),
    "into a column": lambda x: x.select_scatter(x[:, 0] * 2, 1, 2),
    "spectrum": lambda x: torch.fft.rfft(x).abs(),
    "spectrum and back": lambda x: torch.fft.irfft(torch.fft.rfft(x), n=4),
    "shifted": lambda x: torch.fft.fftshift(x, 1),
    "rotated pairs": lambda x: torch.view_as_real(
        torch.view_as_complex(x.view(N, 2, 2)) * torch.tensor(1j)
    ).flatten(1),
    "complex": lambda x: torch.complex(x, x.flip(1)).angle(),
    "polar": lambda x: torch.polar(x.abs(), x).real,
    "conjugated": lambda x: torch.complex(x, x).conj().imag,
    "written in slices": lambda x: torch.cat([x[:, :1], x[:, 1:].clone().mul_(2)], 1),
}
RANK_3 = {
    "attention": lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x,
    "sdpa": lambda x: F.scaled_dot_product_attention(x, x, x),
    "tokens into samples": lambda x: F.layer_norm(x.reshape(-1, 4), (4,)),
    "sequence first": lambda x: x.transpose(0, 1).softmax(-1),
    "group norm": lambda x: F.group_norm(x, 5),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(5), torch.ones(5)),
    "instance norm": F.instance_norm,
    "conv": lambda x: F.conv1d(x, torch.ones(2, 5, 2)),
    "depthwise": lambda x: F.conv1d(x, torch.ones(5, 1, 2), groups=5),
    "transposed conv": lambda x: F.conv_transpose1d(x, torch.ones(5, 2, 2)),
    "pool": lambda x: F.max_pool1d(x, 2),
    "adaptive": lambda x: F.adaptive_avg_pool1d(x, 1),
    "lp pool": lambda x: F.lp_pool1d(x.abs(), 2.0, 2),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0),
    "masked attention": lambda x: (x @ x.mT).masked_fill(
        torch.ones(5, 5).triu(1).bool(), -1e9
    ),
    "last token": lambda x: x[:, -1],
    "moved": lambda x: x.movedim(0, -1).sort(0).values,
    "distances": lambda x: torch.cdist(x, x),
    "einsum attention": lambda x: torch.einsum("bid, bjd -> bij", x, x),
    "einsum to the end": lambda x: torch.einsum("btd->dtb", x),
    "spectrum over tokens": lambda x: torch.fft.rfft(x, dim=1).real,
    "spectrum over both": lambda x: torch.fft.fft2(x).real,
    "filter over tokens": lambda x: torch.fft.irfft(
        torch.fft.rfft(x, dim=1) * torch.ones(3, 4), n=5, dim=1
    ),
    "messages": lambda x: torch.zeros_like(x).index_add(
        1, torch.tensor([0, 1, 2, 2]), x[:, torch.tensor([4, 3, 1, 0])]
    ),
    "messages of merged graphs": lambda x: (
        torch.zeros(N * 5, 4)
        .index_add(
            0,
            (torch.arange(N)[:, None] * 5 + torch.tensor([0, 1])).flatten(),
            x.flatten(0, 1)[
                (torch.arange(N)[:, None] * 5 + torch.tensor([3, 4])).flatten()
            ],
        )
        .view(N, 5, 4)
    ),
    "pooled graphs": lambda x: torch.zeros(N, 4).index_add(
        0, torch.arange(N).repeat_interleave(5), x.flatten(0, 1)
    ),
    "masked sdpa": lambda x: F.scaled_dot_product_attention(x, x, x, x @ x.mT),
    "rotary": lambda x: torch.view_as_real(
        torch.view_as_complex(x.view(N, 5, 2, 2)) * torch.ones(5, 1) * 1j
    ).flatten(2),
    "written tokens": lambda x: x.clone().index_put_(
        (torch.arange(N), torch.arange(N)), x[:, 4]
    ),
}
RANK_4 = {
    "conv": lambda x: F.conv2d(x, torch.ones(2, 4, 2, 2)),
    "pool": lambda x: F.max_pool2d(x, 2),
    "pool indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "patches": lambda x: F.unfold(x, 2),
    "patches put together": lambda x: F.fold(F.unfold(x, 2), (2, 6), 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "local response": lambda x: F.local_response_norm(x, 2),
    "frames as samples": lambda x: F.avg_pool2d(x.flatten(0, 1)[:, None], 2),
    "grid": lambda x: F.grid_sample(
        x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False
    ),
    "spectrum of a map": lambda x: torch.fft.rfft2(x).abs(),
    "all of the spectrum": lambda x: torch.fft.fftn(x, dim=(1, 2, 3)).real,
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "transposed conv": lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2)),
    "grouped conv": lambda x: F.conv2d(x, torch.ones(4, 2, 1, 1), groups=2),
    "resized": lambda x: F.interpolate(x, (3, 3), mode="bilinear"),
    "shifted windows": lambda x: x.roll((1, 1), (2, 3)).view(N, 4, 2, 2, 3).flatten(3),
}
KEPT = [
    *((2, name, f) for name, f in RANK_2.items()),
    *((3, name, f) for name, f in RANK_3.items()),
    *((4, name, f) for name, f in RANK_4.items()),
    (1, "relu", torch.relu),
    (1, "one hot", lambda x: F.one_hot((x > 0).long(), 2)),
]


def moved_by_sample(function, x: Tensor) -> list[Tensor]:
    """Which elements of the result change when one sample changes, for each sample."""
    before = function(x.clone())
    changes = []
    for i in range(N):
        moved = torch.zeros(before.shape, dtype=torch.bool)
        for seed in range(4):
            other = x.clone()
            generator = torch.Generator().manual_seed(seed)
            other[i] = torch.randn(x[i].shape, generator=generator) * 3
            moved |= (function(other) != before).to(torch.bool)
        changes.append(moved)
    return changes


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(
    ("rank", "function"),
    [pytest.param(r, f, id=f"{r}d-{n.replace(' ', '-')}") for r, n, f in KEPT],
)
def test_rows_say_which_sample_an_element_depends_on(rank, function):
    x = torch.randn(SHAPES[rank])
    y, labels = labels_after(function, x)
    assert labels.rows is not None
    rows = labels.rows.expand(y.shape)
    for i, moved in enumerate(moved_by_sample(function, x), start=1):
        assert bool((rows[moved] == i).all())


MIXED = {
    "centered": lambda x: x - x.mean(0),
    "softmax over samples": lambda x: x.softmax(0),
    "normalized over samples": lambda x: F.normalize(x, dim=0),
    "kernel": lambda x: x @ x.T,
    "kernel by linear": lambda x: F.linear(x, x),
    "kernel by einsum": lambda x: torch.einsum("ic,jc->ij", x, x),
    "gram": lambda x: x.T @ x,
    "diagonal": lambda x: torch.einsum("ii->i", x[:, :3]),
    "distances": lambda x: torch.cdist(x, x),
    "similarities": lambda x: F.cosine_similarity(x[:, None], x[None], dim=-1),
    "outer": lambda x: torch.outer(x[:, 0], x[:, 1]),
    "total": lambda x: x.sum(),
    "largest of all": lambda x: x / x.max(),
    "norm of all": lambda x: x / x.norm(),
    "neighbors": lambda x: x + x.roll(1, 0),
    "halves": lambda x: x[:1] * x[1:2],
    "sorted samples": lambda x: x.sort(0).values,
    "msort": torch.msort,
    "ranked": lambda x: x.argsort(0),
    "best samples": lambda x: x.topk(2, 0).values,
    "running": lambda x: x.cumsum(0),
    "steps": lambda x: x.diff(dim=0),
    "samples as features": lambda x: F.layer_norm(x.T, (N,)),
    "everything as features": lambda x: x.reshape(1, -1).softmax(1),
    "pooled over samples": lambda x: F.max_pool1d(x.T[:, None], 2),
    "convolved over samples": lambda x: F.conv1d(x[None], torch.ones(2, N, 1)),
    "resized over samples": lambda x: F.interpolate(x.T[None], scale_factor=2.0),
    "group norm of one": lambda x: F.group_norm(x.reshape(1, -1), 2),
    "parts of a table by columns": lambda x: torch.ones(2, 4)[:, x.argmax(1)],
    "covariance": lambda x: torch.cov(x.T),
    "singular": lambda x: torch.linalg.svd(x, full_matrices=False)[0],
    "fourier": lambda x: torch.fft.fft(x, dim=0).real,
    "fourier of all": lambda x: torch.fft.fftn(x).real,
    "complex pairs of samples": lambda x: torch.view_as_real(
        torch.view_as_complex(x[:2].T.contiguous())
    ),
    "segments across samples": lambda x: torch.zeros(2, 4).index_add(
        0, torch.tensor([0, 0, 1]), x
    ),
    "segments chosen by values": lambda x: torch.zeros(N, 4).index_add(
        0, x[:, 0].argsort(), x
    ),
    "inner of samples": lambda x: torch.inner(x, x),
    "tensordot of samples": lambda x: torch.tensordot(x, x, dims=([0], [0])),
    "dot": lambda x: torch.dot(x[:, 0], x[:, 1]),
    "quantile of samples": lambda x: x.quantile(0.5, 0),
    "scattered over samples": lambda x: torch.zeros(N, 4).scatter(0, x.argsort(0), 1.0),
    "averaged by a matrix": lambda x: torch.full((N, N), 1 / N) @ x,
    "added by index": lambda x: torch.zeros(1, 4).index_add(
        0, torch.zeros(N, dtype=torch.long), x
    ),
    "attention over samples": lambda x: F.scaled_dot_product_attention(
        x[None], x[None], x[None]
    ),
    "reinterpreted": lambda x: x.view(torch.int32),
}


@pytest.mark.parametrize("case", MIXED, ids=lambda case: case.replace(" ", "-"))
def test_what_mixes_samples_is_lost(case):
    _, labels = labels_after(MIXED[case], torch.randn(N, 4))
    assert labels.rows is None
    assert labels.untraceable


def test_a_function_of_no_family_is_named():
    _, labels = labels_after(lambda x: torch.trapezoid(x, dim=1), torch.randn(N, 4))
    assert labels.rows is None
    why = "`trapezoid` is not known to keep samples apart, in 'model' (Identity)"
    assert labels.untraceable == why


# --- what the derivatives say ---------------------------------------------------------


def dependence(function, *xs: Tensor) -> list[Tensor]:
    """Which elements of the result depend on which of each argument, by derivatives."""
    found = []
    for i, x in enumerate(xs):
        seen = torch.zeros(function(*xs).numel(), x.numel(), dtype=torch.bool)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            others = [torch.randn(t.shape, generator=generator) for t in xs]

            def run(t, i=i, others=others):
                return function(*others[:i], t, *others[i + 1 :]).float()

            slopes = torch.autograd.functional.jacobian(run, others[i])
            seen |= slopes.view(seen.shape) != 0
        found.append(seen)
    return found


SMOOTH = [
    case
    for case in KEPT
    if case[1] not in ("argmax", "one hot", "looked up") and "a table" not in case[1]
]
# these scale channels by one another, or choose them by their values, and keep them
SCALING = [
    "softmax", "implicit softmax", "transposed softmax", "normalize", "layer norm",
    "grouped", "tokens into samples", "sequence first", "group norm", "instance norm",
    "local response", "gather", "take along",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(
    ("rank", "name", "function"),
    [
        pytest.param(*case, id=f"{case[0]}d-{case[1].replace(' ', '-')}")
        for case in SMOOTH
    ],
)
def test_derivatives_stay_within_sample_and_channel(rank, name, function):
    x = torch.randn(SHAPES[rank])
    y, labels = labels_after(function, x)
    (depends,) = dependence(function, x)
    rows, channels = (t.flatten() for t in coded(SHAPES[rank], CHANNEL_AXIS[rank]))
    assert labels.rows is not None
    said = labels.rows.expand(y.shape).flatten()[:, None]
    assert not (depends & (said != rows)).any()
    if labels.channels is not None and name not in SCALING:
        said = labels.channels.expand(y.shape).flatten()[:, None]
        # 0 is of no channel: a mean over all of them
        assert not (depends & (said != channels) & (said > 0)).any()


TWO = {
    "side by side": lambda a, b: torch.cat([a, b], 1),
    "stacked": lambda a, b: torch.stack([a, b], 2),
    "behind one another": lambda a, b: torch.cat([a, b], 2),
    "rolled": lambda a, b: torch.cat([a, b], 1).roll(2, 1),
    "picked": lambda a, b: torch.cat([a, b], 1)[:, torch.tensor([7, 0, 3])],
    "windows": lambda a, b: torch.cat([a, b], 1).unfold(1, 5, 5),
    "flattened": lambda a, b: torch.cat([a, b], 1).flatten(1)[:, 3:30],
    "permuted": lambda a, b: torch.cat([a, b], 2).permute(2, 0, 1)[1:6],
    "padded": lambda a, b: F.pad(torch.cat([a, b], 1), (0, 0, 2, 2)),
    "reflected": lambda a, b: F.pad(torch.cat([a, b], 2), (2, 2), mode="reflect"),
    "shuffled": lambda a, b: F.pixel_shuffle(
        torch.stack([a, b], 1).repeat(1, 2, 1, 1), 2
    ),
    "gathered": lambda a, b: torch.cat([a, b], 1).gather(
        1, torch.arange(8).flip(0)[None, :, None].expand(N, -1, 4)
    ),
    "scattered into": lambda a, b: a.slice_scatter(b[:, :2], 1, 1, 3),
    "put": lambda a, b: a.index_put((torch.arange(N), torch.arange(N)), b[:, 0]),
    "copied": lambda a, b: a.index_copy(1, torch.tensor([4, 0]), b[:, 1:3]),
    "masked": lambda a, b: torch.where(torch.arange(5)[:, None] < 2, a, b),
    "added": lambda a, b: a + b,
    "added after": lambda a, b: torch.cat([a, b], 1) + torch.cat([b, b], 1),
    "normalized": lambda a, b: torch.stack([a, b], 1).softmax(-1),
    "normalized together": lambda a, b: torch.stack([a, b], 1).softmax(1),
    "averaged": lambda a, b: torch.stack([a, b], 1).mean(2),
    "averaged together": lambda a, b: torch.stack([a, b, a], 1)[:, :2].mean(1),
    "running": lambda a, b: torch.stack([a, b], 1).cumsum(2),
    "pooled": lambda a, b: F.avg_pool1d(torch.cat([a, b], 1), 2),
    "multiplied": lambda a, b: torch.stack([a, b], 1) @ torch.ones(4, 2),
    "multiplied from the left": lambda a, b: torch.ones(2, 10) @ torch.cat([a, b], 1),
    "attention of both": lambda a, b: (
        torch.stack([a @ a.mT, b @ b.mT], 1).softmax(-1) @ torch.stack([a, a], 1)
    ),
    "written": lambda a, b: written(torch.cat([a, a], 1), b),
    "spectrum": lambda a, b: torch.fft.rfft(torch.stack([a, b], 1), dim=2).abs(),
}
# of those, what never says more than the derivatives do
NO_MORE = set(TWO) - {"added after", "masked", "running", "averaged together"}


def written(h: Tensor, b: Tensor) -> Tensor:
    h = h.clone()
    h[:, 2:4] = b[:, :2]
    h[:, 8:].add_(b[:, :2])
    return h


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.replace(" ", "-"))
def test_sources_of_an_element_are_what_it_depends_on(case):
    function, (a, b) = TWO[case], torch.randn(2, *SHAPES[3])
    first, second = nn.Identity(), nn.Identity()
    model = nn.ModuleList([first, second])
    record = Record(model, (a, b), ())
    with Recorder(record, Selection({first: "a", second: "b"})), torch.no_grad():
        y = function(first(a), second(b))
    sources = record.node(y).labels.sources
    which = sources.labels(y.device).expand(y.shape).flatten().long()
    sets = [frozenset(), *sources.sets]
    for index, depends in zip((2, 3), dependence(function, a, b), strict=True):
        said = torch.tensor([index in sets[i] for i in which])
        assert not (depends.any(1) & ~said).any()
        if case in NO_MORE:
            assert torch.equal(depends.any(1), said)


# --- which channel --------------------------------------------------------------------

MOVES = st.sampled_from(["flip", "roll", "permute", "flatten", "unsqueeze", "slice"])


@st.composite
def moves(draw):
    """A rank, and moves of elements with random numbers to choose axes by."""
    numbers = st.integers(0, 10**6)
    steps = st.lists(st.tuples(MOVES, numbers), min_size=1, max_size=5)
    return draw(st.sampled_from([2, 3, 4])), draw(steps)


def apply(x: Tensor, steps) -> Tensor:
    for move, number in steps:
        d = number % x.dim()
        if move == "flip":
            x = x.flip(d)
        elif move == "roll":
            x = x.roll(number % 7, d)
        elif move == "permute":
            generator = torch.Generator().manual_seed(number)
            x = x.permute(*torch.randperm(x.dim(), generator=generator).tolist())
        elif move == "flatten" and x.dim() > 1:
            x = x.flatten(min(d, x.dim() - 2), min(d, x.dim() - 2) + 1)
        elif move == "unsqueeze" and x.dim() < 6:
            x = x.unsqueeze(d)
        elif move == "slice" and x.shape[d] > 2:
            x = x.narrow(d, number % 2, x.shape[d] - 1)
    return x


@given(moves())
def test_moved_elements_keep_sample_and_channel(case):
    rank, steps = case
    rows, channels = coded(SHAPES[rank], CHANNEL_AXIS[rank])
    _, labels = labels_after(lambda x: apply(x, steps), torch.randn(SHAPES[rank]))
    assert labels.rows is not None
    assert labels.channels is not None
    assert torch.equal(labels.rows.expand(labels.shape), apply(rows, steps))
    assert torch.equal(labels.channels.expand(labels.shape), apply(channels, steps))


@given(moves())
def test_averages_are_those_of_a_loop_over_pairs(case):
    rank, steps = case
    x = torch.randn(SHAPES[rank])
    rows, channels = (apply(t, steps) for t in coded(x.shape, CHANNEL_AXIS[rank]))
    y, labels = labels_after(lambda x: apply(x, steps), x)
    pairs = [
        [y[(rows == i) & (channels == c)] for c in range(1, 5)] for i in range(1, N + 1)
    ]
    found = by_channel(y, labels, N, 4)
    if len({p.numel() for row in pairs for p in row}) > 1 or not pairs[0][0].numel():
        assert found is None
    else:
        slow = torch.tensor([[p.double().mean() for p in row] for row in pairs])
        torch.testing.assert_close(average(found), slow.float())
