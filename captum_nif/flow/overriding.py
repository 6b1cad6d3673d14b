"""Running a model with the values of all its layers overridden, all in one pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from captum_nif.flow.checks import check_same
from captum_nif.flow.population import Population
from captum_nif.tracing.tracer import Trace, trace


class OverriddenModel:
    """A model whose layers' values are overridden before they are read.

    Args:
        model (Module): the network.
        population (Population): of neurons, whose structure it has.

    Raises:
        NotImplementedError: if a layer's value cannot be overridden.
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
    ) -> None:
        self._model = model
        self._population = population
        self._read = {source for source, _ in population.structure.links}
        for layer in population.structure.layers:
            if layer.kind == "hidden" and layer.name not in population.positions:
                raise NotImplementedError(
                    f"The layer {layer.name!r} passes on several tensors, or one that "
                    "not all its readers take, so its values cannot be replaced by "
                    "independent ones: use sampling='observed' and nodes='channel'."
                )

    def is_read(self, name: str) -> bool:
        """Whether the elements of this layer are nodes; token ids are none."""
        return name in self._read

    def run(self, values: Mapping[str, Tensor], extra: tuple[object, ...]) -> Trace:
        """One pass, in which each layer passes on these values."""
        population = self._population
        inputs = tuple(
            values[layer.name].reshape(-1, *shape).to(dtype)
            for layer, shape, dtype in zip(
                population.inputs, population.shapes, population.dtypes, strict=True
            )
        )
        overrides = {
            position: values[name] for name, position in population.positions.items()
        }
        try:
            result = trace(
                self._model, inputs, extra, population.modules, "neuron", overrides
            )
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # says by itself what is wrong
                raise
            raise NotImplementedError(
                f"The model does not run with independent inputs ({error}): use "
                "sampling='observed' and nodes='channel'."
            ) from error
        check_same(population.structure, result.structure, "independent inputs")
        if result.positions != population.positions:
            raise NotImplementedError(
                "With independent inputs the model took another path through its "
                "functions than for the background: use sampling='observed' and "
                "nodes='channel'."
            )
        return result
