"""A background, in any form that users have it, as batches of the model's inputs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_nif._blocks import blocks
from captum_nif._captum import progress
from captum_nif._messages import counted
from captum_nif.flow.checks import check_sizes

BATCH_SIZE = 64
"""Samples in one forward pass, where the caller leaves the choice open."""

Batches = Iterable[tuple[tuple[Tensor, ...], tuple[Any, ...]]]
"""Pairs of the model's inputs and its further arguments, a batch of each."""

Background = Tensor | tuple[Tensor, ...] | Iterable[Any]


def batches_of(
    model: nn.Module,
    background: Background,
    extra: tuple[Any, ...] = (),
    batch_size: int = BATCH_SIZE,
    show_progress: bool = False,
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...]]]:
    """Cuts a background into pairs of model inputs and further arguments.

    Args:
        model (Module): the network, whose ``forward`` tells the number of inputs.
        background (Tensor, tuple of Tensor, or iterable): all samples at once, or an
            iterable of batches (tensors, tuples or lists of tensors) of which only the
            first ones, the model's inputs, are used.
        extra (tuple): further arguments of the model; tensors follow the samples, and
            what is wrapped in a :class:`~captum_nif.Constant` does not.
        batch_size (int): samples in a batch, where all come at once.
        show_progress (bool): whether to draw a progress bar.

    Raises:
        TypeError: if a batch is no tensor and no tuple or list of tensors.
        ValueError: if there are fewer tensors than inputs or it cannot be told which
            are inputs, if inputs differ in samples, or if ``extra`` holds tensors that
            cannot be cut along with a stream.
    """
    device = next((p.device for p in model.parameters()), None)
    if isinstance(background, Tensor):
        background = (background,)
    if isinstance(background, tuple) and all(isinstance(x, Tensor) for x in background):
        _check_arity(model, len(background), len(extra))
        check_sizes(background, "the background")
        cuts: Iterable[Any] = cut(background, extra, batch_size)
        total: int | None = math.ceil(len(background[0]) / batch_size)
    else:
        cuts = _streamed(model, background, extra)
        total = len(background) if isinstance(background, Sized) else None
    with progress(
        cuts, desc="NIF background", total=total, disable=not show_progress
    ) as bar:
        for inputs, further in bar:
            # what holds no values cannot be moved, and is refused where it is run
            yield tuple(x if x.is_meta else x.to(device) for x in inputs), further


def cut(
    inputs: tuple[Tensor, ...], extra: tuple[Any, ...], batch_size: int
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...]]]:
    """Cuts inputs, and the further arguments that follow them, into batches."""
    n = len(inputs[0])
    for arg in extra:
        if isinstance(arg, Tensor) and arg.dim() > 0 and arg.shape[0] != n:
            raise ValueError(
                f"A tensor of shape {tuple(arg.shape)} in `additional_forward_args` "
                f"does not follow the {n} samples of the inputs: its axis 0 must have "
                "that size. Wrap what is the same for all samples: `Constant(tensor)`."
            )
    for part in blocks(n, batch_size):
        yield tuple(x[part] for x in inputs), rows_of(extra, part, n)


def rows_of(
    extra: tuple[Any, ...], part: slice | Tensor, total: int
) -> tuple[Any, ...]:
    """Further arguments of some of so many samples: tensors with axes follow them."""
    return tuple(
        arg[part.to(arg.device) if isinstance(part, Tensor) else part]
        if isinstance(arg, Tensor) and arg.dim() and len(arg) == total
        else arg
        for arg in extra
    )


def _streamed(
    model: nn.Module, background: Iterable[Any], extra: tuple[Any, ...]
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...]]]:
    if not isinstance(background, Iterable) or isinstance(
        background, (str, Mapping, np.ndarray)
    ):
        raise TypeError(
            "The background must be a tensor, a tuple of tensors (one per input), or "
            "an iterable of batches such as a DataLoader; got "
            f"{type(background).__name__}.{_advice(background)}"
        )
    if any(isinstance(arg, Tensor) and arg.dim() for arg in extra):
        raise ValueError(
            "`additional_forward_args` holds a tensor, which cannot be cut along with "
            "a stream of batches: pass the background as a tuple of tensors, or wrap "
            "what is the same for all samples: `Constant(tensor)`."
        )
    for batch in background:
        tensors = (batch,) if isinstance(batch, Tensor) else batch
        if not isinstance(tensors, (tuple, list)):
            raise TypeError(
                "A batch of the background must be a tensor, or a tuple or list that "
                f"begins with the model's inputs; got {type(batch).__name__}."
                f"{_advice(batch)}"
            )
        inputs = tuple(tensors[: _inputs_among(len(tensors), model, len(extra))])
        if not inputs or not all(isinstance(x, Tensor) for x in inputs):
            raise TypeError(
                "A batch of the background must begin with the model's inputs as "
                f"tensors; got {[type(x).__name__ for x in inputs]}."
            )
        check_sizes(inputs, "the background")
        yield inputs, extra


def _advice(found: object) -> str:
    """What to do with data of a type that is not taken."""
    if isinstance(found, np.ndarray):
        return " Convert it with `torch.from_numpy(array)`."
    if isinstance(found, Dataset):
        return f" Wrap it: `DataLoader(dataset, batch_size={BATCH_SIZE})`."
    if isinstance(found, Mapping):
        return " Map it, for example `((batch['x'],) for batch in loader)`."
    return ""


def _inputs_among(available: int, model: nn.Module, n_extra: int) -> int:
    """How many of the tensors of a batch, labels included, are the model's inputs."""
    parameters = _parameters_of(model)
    if parameters is None:
        if available > 1:
            raise ValueError(
                f"A batch of the background holds {counted(available, 'tensor')}, and "
                "the number of inputs cannot be told from `*args` of the model's "
                "`forward`: pass a tuple of tensors, or map the loader to inputs alone."
            )
        return available
    required = sum(p.default is p.empty for p in parameters)
    # further arguments may stand for required parameters or for optional ones
    most = max(min(required, len(parameters) - n_extra), 1)
    fewest = max(required - n_extra, 1)
    if available < fewest:
        raise ValueError(
            f"A batch of the background holds {counted(available, 'tensor')}, and the "
            f"model takes {counted(fewest, 'input')}: give batches that hold them all, "
            "or, where each tensor is one input, pass a tuple instead of a list."
        )
    if fewest < min(most, available):
        raise ValueError(
            f"A batch of the background holds {counted(available, 'tensor')}, of which "
            f"the first {fewest} to {most} may be inputs, given {n_extra} "
            "`additional_forward_args`: pass the background as a tuple of tensors."
        )
    return fewest


def _parameters_of(model: nn.Module) -> list[inspect.Parameter] | None:
    """The positional parameters of ``forward``; None if it takes any number."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _check_arity(model: nn.Module, n_inputs: int, n_extra: int) -> None:
    parameters = _parameters_of(model)
    if parameters is not None and n_inputs + n_extra > len(parameters):
        raise ValueError(
            f"A tuple of {counted(n_inputs, 'tensor')} means "
            f"{counted(n_inputs, 'input')}, but the model's `forward` takes "
            f"{counted(len(parameters), 'argument')}. Leave labels out, or pass a "
            "DataLoader, of whose batches only the inputs are used."
        )
