"""Links follow elements: a part of a tensor is linked to what that part holds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy_models import TOKENS, VECTOR, N, Net, arrows, links_of, means, parameter

from captum_nif.tracing.origins import untraceable
from captum_nif.tracing.record import Record
from captum_nif.tracing.recorder import Recorder
from captum_nif.tracing.selection import Selection
from captum_nif.tracing.sources import Sources, collapsed, moved, uniform, united
from captum_nif.tracing.tracer import trace


class ClassToken(nn.Module):
    """Tokens behind a class token, one block of attention, a head that reads a part."""

    def __init__(self, read, width: int = 6) -> None:
        super().__init__()
        self.read, self.cls = read, parameter(1, 1, width)
        self.e = nn.Linear(4, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.h = nn.Linear(width, 2)

    def forward(self, x):
        h = torch.cat([self.cls.expand(len(x), -1, -1), self.e(x)], 1)
        weights = (self.q(h) @ self.k(h).mT).softmax(-1)
        return self.h(self.read(h + self.o(weights @ self.v(h))))


INNER = "input > e > q > o, e > k > o, e > v > o, o > h > output"
READS = {
    "class token": (lambda h: h[:, 0], False),
    "class token, kept": (lambda h: h[:, :1].flatten(1), False),
    "class token by narrow": (lambda h: h.narrow(1, 0, 1).squeeze(1), False),
    "class token by select": (lambda h: h.select(1, 0), False),
    "class token by index": (
        lambda h: h.index_select(1, torch.tensor([0]))[:, 0],
        False,
    ),
    "class token, split off": (lambda h: h.split([1, 5], 1)[0].squeeze(1), False),
    "class token, unbound": (lambda h: h.unbind(1)[0], False),
    "class token after a norm": (lambda h: F.layer_norm(h, (6,))[:, 0], False),
    "class token of the transposed": (lambda h: h.transpose(0, 1)[0], False),
    "class token of the flattened": (lambda h: h.flatten(1)[:, :6], False),
    "class token times a mask": (
        lambda h: (h * (torch.arange(6) < 1)[:, None])[:, 0],
        False,
    ),
    "class token of a padded one": (lambda h: F.pad(h, (0, 0, 1, 0))[:, 1], False),
    "first patch": (lambda h: h[:, 1], True),
    "mean of patches": (lambda h: h[:, 1:].mean(1), True),
    "mean of all": (lambda h: h.mean(1), True),
    "all but the first, by mask": (
        lambda h: h[:, torch.arange(6) > 0].amax(1),
        True,
    ),
    "class token mixed with patches": (lambda h: h.cumsum(1).flip(1)[:, 0], True),
    "class token of a sum over none": (lambda h: h.cumsum(1)[:, 0], True),  # to be safe
}


@pytest.mark.parametrize("case", READS, ids=lambda case: case.replace(" ", "-"))
def test_what_a_head_reads_beside_attention(case):
    read, is_linked = READS[case]
    model, x = ClassToken(read).eval(), torch.randn(TOKENS)
    links = {link for link in links_of(model, x) if link[1] != "output"}
    inner = {link for link in arrows(INNER) if link[1] != "output"}
    assert links == inner | ({("e", "h")} if is_linked else set())


def test_the_value_of_a_layer_is_told_by_the_paths_that_hold_it():
    """The residual path to the class token does not hold the patches: the value is what
    attention reads, after the norm."""
    model = ClassToken(lambda h: h[:, 0])
    forward = model.forward

    def run(x):
        h = torch.cat([model.cls.expand(len(x), -1, -1), model.e(x)], 1)
        z = F.layer_norm(h, (6,))
        weights = (model.q(z) @ model.k(z).mT).softmax(-1)
        return model.h((h + model.o(weights @ model.v(z)))[:, 0])

    model.forward, x = run, torch.randn(TOKENS)
    found = trace(model, (x,))
    with torch.no_grad():
        h = torch.cat([model.cls.expand(N, -1, -1), model.e(x)], 1)
        expected = means(F.layer_norm(h, (6,))[:, 1:].mT)
    torch.testing.assert_close(found.values["e"], expected)
    model.forward = forward


PARTS = {
    "parts of a concatenation": (
        lambda m, x: (lambda h: m.c(h[:, :3]) + m.d(h[:, 3:]))(
            torch.cat([m.a(x), m.b(x)], 1)
        ),
        "input > a > c > output, input > b > d > output",
    ),
    "parts of a stack": (
        lambda m, x: (lambda h: m.c(h[0]) + m.d(h[1]))(torch.stack([m.a(x), m.b(x)])),
        "input > a > c > output, input > b > d > output",
    ),
    "parts that overlap": (
        lambda m, x: (lambda h: m.c(h[:, :3]) + m.d(h[:, 2:5]))(
            torch.cat([m.a(x), m.b(x)], 1)
        ),
        "input > a > c > output, a > d, input > b > d > output",
    ),
    "a part that is overwritten by a layer": (
        lambda m, x: (
            lambda h: (h.__setitem__((slice(None), 0), m.b(x)), m.c(h[:, 0]))[1]
        )(m.a(x)[:, None].repeat(1, 2, 1)),
        "input > b > c",
    ),
    "a part beside one that is overwritten": (
        lambda m, x: (
            lambda h: (h.__setitem__((slice(None), 0), m.b(x)), m.c(h[:, 1]))[1]
        )(m.a(x)[:, None].repeat(1, 2, 1)),
        "input > a > c",
    ),
    "a part that is overwritten through a view": (
        lambda m, x: (lambda h: (h[:, 0].copy_(m.b(x)), m.c(h[:, 0]), m.d(h[:, 1])))(
            m.a(x)[:, None].repeat(1, 2, 1)
        )[1],
        "input > b > c",
    ),
    "a part that is set to zero": (
        lambda m, x: (
            lambda h: (h.__setitem__((slice(None), 0), 0), m.c(h[:, 0] + m.b(x)))[1]
        )(m.a(x)[:, None].repeat(1, 2, 1)),
        "input > b > c",
    ),
    "rolled": (
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1).roll(3, 1)[:, :3]),
        "input > b > c",
    ),
    "chosen by what a layer says": (
        lambda m, x: m.c(
            torch.stack([m.a(x), x[:, :3]], 1)[torch.arange(N), m.b(x).argmax(1) % 2]
        ),
        "input > a > c, input > b > c, input > c",
    ),
    "gated parts": (
        lambda m, x: (lambda h: m.c((h * h.sigmoid())[:, :3]))(
            torch.cat([m.a(x), m.b(x)], 1)
        ),
        "input > a > c",
    ),
    "normalized together": (
        lambda m, x: (lambda h: m.c(h.softmax(1)[:, :3]))(
            torch.cat([m.a(x), m.b(x)], 1)
        ),
        "input > a > c, input > b > c",
    ),
    "normalized apart": (
        lambda m, x: (lambda h: m.c(h.softmax(2)[:, 0]))(
            torch.stack([m.a(x), m.b(x)], 1)
        ),
        "input > a > c",
    ),
    "blocks of a product": (
        lambda m, x: (lambda h: m.c((h @ m.ones)[:, :1].expand(-1, 3)))(
            torch.stack([m.a(x), m.b(x)], 1)
        ),
        "input > a > c",
    ),
    "added in slices": (
        lambda m, x: (
            lambda h: (h[:, :2].add_(m.b(x)[:, :2]), m.c(h), m.d(h[:, 2:].repeat(1, 3)))
        )(m.a(x).clone())[2],
        "input > a > d",
    ),
}


@pytest.mark.parametrize("case", PARTS, ids=lambda case: case.replace(" ", "-"))
def test_parts_of_tensors(case):
    run, expected = PARTS[case]
    model = Net(
        run,
        a=nn.Linear(4, 3),
        b=nn.Linear(4, 3),
        c=nn.Linear(3, 2),
        d=nn.Linear(3, 2),
        ones=torch.ones(3),
    )
    assert links_of(model, torch.randn(VECTOR)) == arrows(expected)


def test_assignments_to_slices():
    def added(m, x):
        h = m.a(x).relu().clone()
        h[:, 1:3] += m.b(x)
        return m.c(h)

    def scaled(m, x):
        h = m.a(x).relu()
        h[:, 1:3] *= 2
        return m.c(h)

    def filled(m, x):
        h = x.new_zeros(len(x), 6)
        h[:, :2] = m.b(x)
        h[:, 2:] -= m.a(x)[:, 2:]
        return m.c(h)

    def twice(m, x):
        h = m.a(x)
        h[:, 1:3] = h[:, 3:5]
        return m.c(h)

    parts = {"a": nn.Linear(4, 6), "b": nn.Linear(4, 2), "c": nn.Linear(6, 3)}
    x = torch.randn(VECTOR)
    for run in (added, filled):
        model = Net(run, **parts)
        assert links_of(model, x) == arrows("input > a > c, input > b > c")
    for run in (scaled, twice):
        model = Net(run, **parts)
        found = trace(model, (x,))
        assert set(found.structure.links) == arrows("input > a > c")
        with torch.no_grad():
            assert torch.equal(found.values["c"], model(x))
    with torch.no_grad():  # scaled, and all channels are still there
        expected = parts["a"](x).relu()
        expected[:, 1:3] *= 2
        found = trace(Net(scaled, **parts), (x,))
    assert torch.equal(found.values["a"], expected)


def test_a_query_that_is_the_same_for_all_samples():
    def run(m, x):
        z = torch.cat([m.cls.expand(len(x), -1, -1), m.e(x)], 1)
        q = m.q(z[:, :1])
        return m.h((torch.softmax(q @ m.k(z).mT, -1) @ m.v(z))[:, 0])

    model = Net(
        run,
        cls=parameter(1, 1, 6),
        e=nn.Linear(4, 6),
        q=nn.Linear(6, 6),
        k=nn.Linear(6, 6),
        v=nn.Linear(6, 6),
        h=nn.Linear(6, 2),
    )
    assert links_of(model, torch.randn(TOKENS)) == arrows(
        "input > e > k > h, e > v > h"
    )


def test_queries_that_are_parameters():
    model = Net(
        lambda m, x: m.h(
            m.att(m.queries.expand(len(x), -1, -1), x, x, need_weights=False)[0].mean(1)
        ),
        queries=parameter(1, 3, 4),
        att=nn.MultiheadAttention(4, 2, batch_first=True),
        h=nn.Linear(4, 2),
    )
    assert links_of(model.eval(), torch.randn(TOKENS)) == arrows("input > att > h")


# --- numbers of categories, masks, lengths --------------------------------------------

TOKEN_MODELS = {
    "mask made of ids": (
        lambda m, ids: (lambda mask: m.h(m.f(m.e(ids)).mul(mask).sum(1) / mask.sum(1)))(
            (ids != 0).float()[..., None]
        ),
        "e > f > h",
    ),
    "length made of ids": (
        lambda m, ids: m.h(m.f(m.e(ids)).sum(1) / (ids != 0).sum(1, keepdim=True)),
        "e > f > h",
    ),
    "last step by length": (
        lambda m, ids: m.h(
            m.f(m.e(ids))[torch.arange(len(ids)), (ids != 0).sum(1).clamp(min=1) - 1]
        ),
        "e > f > h",
    ),
    "positions made of ids": (
        lambda m, ids: m.h((m.f(m.e(ids)) + m.p((ids != 0).cumsum(1))).mean(1)),
        "e > f > h, p > h",
    ),
    "bias of attention": (
        lambda m, ids: (
            lambda z: m.h(
                F.scaled_dot_product_attention(
                    z,
                    z,
                    z,
                    ((1 - (ids != 0).float()) * -1e9)[:, None, :].expand(-1, 5, -1),
                ).mean(1)
            )
        )(m.f(m.e(ids))),
        "e > f > h",
    ),
    "padding mask of a layer": (
        lambda m, ids: m.h(m.l(m.e(ids), src_key_padding_mask=ids == 0).mean(1)),
        """e > l.self_attn > l.linear1 > l.linear2 > h, e > l.linear1, e > h,
        l.self_attn > h""",
    ),
    "masked by fill": (
        lambda m, ids: m.h(
            m.f(m.e(ids)).masked_fill((ids == 0)[..., None], 0.0).amax(1)
        ),
        "e > f > h",
    ),
}


@pytest.mark.parametrize("case", TOKEN_MODELS, ids=lambda case: case.replace(" ", "-"))
def test_ids_are_no_nodes_whatever_is_made_of_them(case):
    run, expected = TOKEN_MODELS[case]
    model = Net(
        run,
        e=nn.Embedding(20, 6),
        p=nn.Embedding(9, 6),
        f=nn.Linear(6, 6),
        h=nn.Linear(6, 2),
        l=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    )
    ids = torch.randint(0, 20, (N, 5))
    ids[:, 0] = 1
    assert links_of(model, ids) == arrows(expected)


def test_a_mask_among_the_inputs_is_no_node():
    def run(m, x, mask):
        h = m.a(x).relu() * mask[..., None]
        return m.h(h.sum(1) / mask.sum(1, keepdim=True))

    model = Net(run, a=nn.Linear(4, 3), h=nn.Linear(3, 2))
    x, mask = torch.randn(TOKENS), torch.ones(N, 5, dtype=torch.int64)
    for kind in (mask, mask.bool()):
        found = trace(model, (x, kind))
        assert set(found.structure.links) == arrows("input0 > a > h")
        with torch.no_grad():  # the value is the masked mean
            expected = (model.a(x).relu() * kind[..., None]).sum(1) / 5
        torch.testing.assert_close(found.values["a"], expected)
    # a floating one may be anything
    assert ("input1", "h") in links_of(model, x, mask.float())


def test_integers_that_a_layer_reads_alone_are_values():
    pixels = torch.randint(0, 256, (N, 4), dtype=torch.uint8)
    model = Net(
        lambda m, x: (lambda y: m.b(m.a(y).relu() * y.mean(1, keepdim=True)))(
            x.float() / 255
        ),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    )
    assert links_of(model, pixels) == arrows("input > a > b, input > b")


def test_ids_and_pixels_side_by_side():
    model = Net(
        lambda m, ids, pixels: m.h(m.e(ids).mean(1) + m.a(pixels.float() / 255)),
        e=nn.Embedding(9, 3),
        a=nn.Linear(4, 3),
        h=nn.Linear(3, 2),
    )
    ids = torch.randint(0, 9, (N, 5))
    pixels = torch.randint(0, 256, (N, 4), dtype=torch.uint8)
    assert links_of(model, ids, pixels) == arrows("input1 > a > h, e > h")


# --- the algebra ----------------------------------------------------------------------

SETS = st.frozensets(st.integers(0, 3), max_size=3)


@st.composite
def sets_of_elements(draw, shape):
    """For each element of a tensor of that shape a set, as a dict by position."""
    count = torch.Size(shape).numel()
    return [draw(SETS) for _ in range(count)]


def as_sources(sets, shape) -> Sources:
    kinds = [frozenset(), *dict.fromkeys(s for s in sets if s)]
    which = torch.tensor([float(kinds.index(s)) for s in sets]).view(shape)
    return Sources(tuple(kinds[1:]), which) if len(kinds) > 1 else uniform(())


def as_sets(sources: Sources, shape) -> list[frozenset[int]]:
    which = sources.labels(torch.device("cpu")).expand(shape).flatten()
    return [frozenset() if i == 0 else sources.sets[int(i) - 1] for i in which]


@given(sets_of_elements((2, 3)), sets_of_elements((2, 3)), sets_of_elements((3,)))
def test_united_sources_are_those_of_a_loop(a, b, c):
    parts = [as_sources(a, (2, 3)), as_sources(b, (2, 3)), as_sources(c, (3,))]
    expected = [x | y | z for x, y, z in zip(a, b, c * 2, strict=True)]
    assert as_sets(united(parts, 2), (2, 3)) == expected


@given(sets_of_elements((2, 3)))
def test_collapsed_sources_are_those_of_a_loop(sets):
    rows = [sets[:3], sets[3:]]
    down = collapsed(as_sources(sets, (2, 3)), [0])
    expected = [x | y for x, y in zip(*rows, strict=True)]
    assert as_sets(down, (1, 3)) == expected
    across = collapsed(as_sources(sets, (2, 3)), [1])
    assert as_sets(across, (2, 1)) == [frozenset().union(*row) for row in rows]


@given(sets_of_elements((2, 3)), sets_of_elements((2, 2)))
def test_moved_sources_are_those_of_a_loop(a, b):
    parts = [as_sources(a, (2, 3)), as_sources(b, (2, 2))]

    def run(labels):
        shapes = [(2, 3), (2, 2)]
        pairs = zip(labels, shapes, strict=True)
        return [torch.cat([x.expand(s) for x, s in pairs], 1).flip(1)]

    (found,) = moved(parts, run)
    expected = [*a[:3], *b[:2]][::-1] + [*a[3:], *b[2:]][::-1]
    assert as_sets(found, (2, 5)) == expected


def test_a_function_that_fails_on_labels_is_refused_and_named(monkeypatch):
    def fail(call):
        raise IndexError("unheard of")

    monkeypatch.setattr("captum_nif.tracing.recorder.propagate", fail)
    record = Record(model := nn.Linear(4, 3), (x := torch.randn(N, 4),), ())
    with Recorder(record, Selection({model: "model"})), torch.no_grad():
        y = model(x).relu()
    labels = record.node(y).labels
    why = (
        "`relu` with such arguments is not understood (unheard of), in 'model' (Linear)"
    )
    assert labels.untraceable == why
    assert labels.sources.union == {1}
    assert untraceable(y.shape, why).rows is None
