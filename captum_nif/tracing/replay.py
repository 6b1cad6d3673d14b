"""Run a model again, and meet the values of its layers where a traced pass made them.

Tracing tells where every element of every tensor comes from, which costs more than many
a model itself. To look at a few tensors of a model that was traced, it is enough to
count: the value of a layer is what the k-th function call between layers made. A
:class:`Script` holds these numbers and the names of all calls; a model that makes other
calls than the script says has taken another path, and must be traced again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_nif.tracing.dataflow import Trace
from captum_nif.tracing.functions import leaves_of, perform, raw_name, version
from captum_nif.tracing.layout import Arrangement, Layout
from captum_nif.tracing.record import Record
from captum_nif.tracing.states import states_of
from captum_nif.tracing.undisturbed import Hooks

Look = Callable[[Tensor, Arrangement | None], object]
"""Looks at a tensor, and where its samples and channels are; None if labels do not
tell."""


class Watched(NamedTuple):
    """A tensor of so many channels, and what looks at it when it is made.

    A state has a layout by itself.
    """

    channels: int
    look: Look
    layout: Layout | None = None


class Rehearsal(NamedTuple):
    """What a traced pass told of a model.

    Args:
        trace (Trace): its layers, links and values.
        states (dict): by the name of a recurrent layer, where its states are made; see
            :func:`captum_nif.tracing.states.states_of`.
        script (Script or None): how to meet all values again.
    """

    trace: Trace
    states: dict[str, dict[int, Layout]]
    script: Script | None


@dataclass(frozen=True)
class Script:
    """The calls of a traced pass, and where in them values are made.

    Args:
        calls (tuple of str): names of the functions between layers, and of layers, in
            the order in which they returned.
        places (Mapping): by the position of a version of a tensor (see
            :class:`~captum_nif.Trace`) the number of the call that made it, which of
            its results it was, and how that is laid out.
    """

    calls: tuple[str, ...]
    places: Mapping[int, tuple[int, int, Layout]]


def rehearsal(record: Record, trace: Trace) -> Rehearsal:
    """What a pass told that has been recorded."""
    states = states_of(record, trace)
    return Rehearsal(trace, states, _script(record, trace, states))


def _script(
    record: Record, trace: Trace, states: Mapping[str, Mapping[int, Layout]]
) -> Script | None:
    """How to meet the values of all layers again; None if counting does not tell."""
    if record.moves_by_values:
        return None
    places = {}
    for position, layout in (at for own in states.values() for at in own.items()):
        places[position] = *record.made_by[position], layout
    for positions in (trace.made, trace.results):
        for name, position in positions.items():
            call, result = record.made_by[position]
            labels = record.order[position].labels
            channels = trace.structure.layer(name).size
            if result < 0 or labels is None or record.batch < 2:
                return None
            arrangement = labels.arrangement(record.batch, channels)
            if not isinstance(arrangement, Layout):
                return None
            places[position] = call, result, arrangement
    return Script(tuple(record.calls), places)


class Replay(TorchFunctionMode):
    """Follows a script; use as a context manager around a forward pass.

    Args:
        script (Script): of an earlier pass.
        layers (Mapping): the modules that are layers, with their paths.
        looks (Mapping): functions that look at tensors, by their positions.
    """

    def __init__(
        self,
        script: Script,
        layers: Mapping[nn.Module, str],
        looks: Mapping[int, Look],
    ) -> None:
        super().__init__()
        self._calls = script.calls
        self._layers = layers
        self._looks: dict[int, list[tuple[int, Layout, Look]]] = {}
        for position, look in looks.items():
            call, result, layout = script.places[position]
            self._looks.setdefault(call, []).append((result, layout, look))
        self._next = 0
        self._diverged = False
        self._depth = 0
        self._taken: list[tuple[Tensor, int]] = []
        self._hooks = Hooks()

    @property
    def has_followed(self) -> bool:
        """Whether the calls were those of the script, to its end."""
        return not self._diverged and self._next == len(self._calls)

    def __enter__(self) -> Replay:
        for module in self._layers:
            self._hooks.add(
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
            )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._hooks.remove()

    def _before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        if self._hooks.is_of_this_thread:
            self._depth += 1
            if self._depth == 1:
                with torch._C.DisableTorchFunction():  # hooks run inside the mode
                    self._taken = [(t, version(t)) for t in leaves_of((args, kwargs))]

    def _after(self, module: nn.Module, args: object, output: object) -> object:
        if self._hooks.is_of_this_thread:
            self._depth -= 1
            if self._depth == 0:
                with torch._C.DisableTorchFunction():
                    return self._leave_layer(module, output)
        return None

    def _leave_layer(self, module: nn.Module, output: object) -> object:
        if isinstance(output, Tensor):
            same = [before for t, before in self._taken if t is output]
            if same and version(output) == same[0]:
                output = output.view_as(output)  # an identity, as in tracing
        self._taken = []
        self._happened(self._layers[module], leaves_of(output))
        return output

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        if self._next not in self._looks:
            result = func(*args, **kwargs)
            self._happened(raw_name(func), ())
            return result
        done = perform(func, args, kwargs)
        self._happened(raw_name(func), done.made)
        return done.result

    def _happened(self, name: str, made: Sequence[Tensor]) -> None:
        """A call returned: is it the one in the script, and is something to be seen?"""
        k, self._next = self._next, self._next + 1
        if k >= len(self._calls) or self._calls[k] != name:
            self._diverged = True
        if self._diverged:
            return
        for result, layout, look in self._looks.get(k, ()):
            if result < len(made):
                look(made[result], layout)
            else:
                self._diverged = True
