"""Elements by sample and channel, through axes, against sorting them one by one."""

import itertools

import pytest
import torch

from captum_nif.tracing.layout import Layout, Positions, layout_of

C, T = 6, 5
# how a model may lay out [N, C, T], and back to [N, C, T]
FORMS = {
    "plain": lambda x: x,
    "channels last": lambda x: x.transpose(1, 2),
    "time first": lambda x: x.permute(2, 0, 1),
    "merged with time": lambda x: x.transpose(1, 2).flatten(0, 1),
    "merged with channels": lambda x: x.flatten(0, 1),
    "time before samples": lambda x: x.permute(2, 0, 1).flatten(0, 1),
    "heads": lambda x: x.unflatten(1, (2, 3)).transpose(2, 3),
    "heads merged with samples": lambda x: (
        x.unflatten(1, (2, 3)).transpose(2, 3).flatten(0, 1)
    ),
    "interleaved heads": lambda x: x.unflatten(1, (2, 3)).permute(0, 2, 3, 1),
    "channels mixed up": lambda x: x[:, [3, 0, 5, 1, 4, 2]],
    "images": lambda x: x.unflatten(1, (2, 3)).permute(1, 0, 3, 2),
}


def labels(n):
    rows, channels = torch.arange(1.0, n + 1), torch.arange(1.0, C + 1)
    return rows.view(n, 1, 1).expand(n, C, T), channels.view(1, C, 1).expand(n, C, T)


def laid_out(form, n):
    rows, channels = (FORMS[form](x) for x in labels(n))
    return layout_of(rows.shape, rows, channels, n, C)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_elements_are_those_with_the_labels_in_the_tensors_order(form, n):
    rows, channels = (FORMS[form](x) for x in labels(n))
    x = torch.randn(rows.shape)
    layout = layout_of(rows.shape, rows, channels, n, C)
    found = layout.group(x)
    for i, c in itertools.product(range(n), range(C)):
        assert torch.equal(found[i, c], x[(rows == i + 1) & (channels == c + 1)])
    assert torch.equal(layout.ungroup(found, x), x)


@pytest.mark.parametrize("form", FORMS)
def test_a_layout_holds_for_any_number_of_samples(form):
    few, many = laid_out(form, 3), laid_out(form, 8)
    x = FORMS[form](torch.randn(8, C, T))
    assert torch.equal(few.group(x), many.group(x))


@pytest.mark.parametrize("form", ["plain", "channels last", "time first"])
def test_what_is_of_no_sample_is_left_out(form):
    rows, channels = labels(4)
    rows = rows.clone()
    rows[:, :, [0, 3]] = 0
    rows, channels = FORMS[form](rows), FORMS[form](channels)
    layout = layout_of(rows.shape, rows, channels, 4, C)
    x, other = torch.randn(rows.shape), torch.randn(rows.shape)
    found = layout.group(x)
    for i, c in itertools.product(range(4), range(C)):
        assert torch.equal(found[i, c], x[(rows == i + 1) & (channels == c + 1)])
    back = layout.ungroup(found, other)
    assert torch.equal(back, torch.where(rows > 0, x, other))


def arrangements(n):
    """A layout and its counterpart by positions, of every form."""
    for form in FORMS:
        rows, channels = (FORMS[form](x) for x in labels(n))
        layout = layout_of(rows.shape, rows, channels, n, C)
        order = ((rows - 1) * C + channels - 1).flatten().argsort(stable=True)
        yield torch.randn(rows.shape), layout
        yield torch.randn(rows.shape), Positions(order, n, C)


def test_blocks_of_samples():
    for x, arrangement in arrangements(8):
        blocks = arrangement.blocks(x, 4)
        grouped = arrangement.group(x)
        assert len(blocks) == 4
        for i, block in enumerate(blocks):
            part = grouped[2 * i : 2 * i + 2]
            assert torch.equal(arrangement.group_block(block), part)
        assert torch.equal(arrangement.joined(blocks, x), x)


def test_labels_without_axes_have_no_layout():
    rows, channels = labels(4)
    padded = rows.clone()
    padded[1, :, 0] = 0
    swapped = channels.clone()
    swapped[0] = swapped[0].flip(0)  # another order in the first sample
    shuffled = rows[[2, 0, 3, 1]]
    for r, c in ((padded, channels), (rows, swapped), (shuffled, channels)):
        assert layout_of(r.shape, r, c, 4, C) is None
    half = channels[:, :3]
    assert layout_of(half.shape, rows[:, :3], half, 4, C) is None
    assert isinstance(layout_of(rows.shape, rows, channels, 4, C), Layout)
