r"""The tensors that a model holds: parameters, buffers, and other attributes."""

from __future__ import annotations

from torch import Tensor, nn

from captum_nif.tracing.functions import tensors_in

_BARE = frozenset(vars(nn.Module()))


class ModelTensors:
    """What a model's modules hold when a pass begins.

    Args:
        model (Module): the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = {id(p): name for name, p in model.named_parameters()}
        """Names of the parameters, by id."""
        self.attributes = _attributes(model)
        """Other tensors with their names, by id."""

    def owner(self, parameter: str) -> str:
        """The path of the module that owns a parameter.

        Or the parameter's, if it is not the only matrix of its module, or if the module
        is the whole model.
        """
        path, parametrized, _ = parameter.partition(".parametrizations.")
        if parametrized:
            return path
        path, _, _ = parameter.rpartition(".")
        module = self.model.get_submodule(path)
        matrices = [p for p in module.parameters(recurse=False) if p.dim() > 1]
        return path if path and len(matrices) == 1 else parameter

    def module(self, path: str) -> nn.Module | None:
        """The module of a layer's path, None if it is a parameter's."""
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return self.model if path == "model" else None

    def around(self, path: str) -> str:
        """The path of the innermost module with code of its own around another."""
        while "." in path:
            path = path.rpartition(".")[0]
            module = self.model.get_submodule(path)
            if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                return path
        return ""

    def attributes_now(self) -> dict[str, Tensor]:
        """The tensors besides parameters that the modules hold by now, by name."""
        return dict(_attributes(self.model).values())


def _attributes(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    found = {}
    for prefix, module in model.named_modules():
        held = {k: v for k, v in vars(module).items() if k not in _BARE}
        for key, value in (*held.items(), *module._buffers.items()):
            for t in tensors_in(value):
                found[id(t)] = (f"{prefix}.{key}".lstrip("."), t)
    return found
