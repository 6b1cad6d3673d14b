"""Flow graphs as files: safe to read from strangers, exact to the last bit.

The format is safetensors: raw tensors behind a JSON header whose claims (dtypes,
shapes, offsets) must add up to the length of the file before anything is allocated.
Nothing in it is ever executed, as in a pickle, or inflated, as in the zip of a
``.npz``, and it knows ``bfloat16``. What is no tensor (layers and their order) is
JSON in the header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from captum_nif._files import whole_or_nothing
from captum_nif.graph.elements import Layer, Link

# One key only: the header of a safetensors file keeps no order among several.
_KEY = "captum_nif.FlowGraph"
_VERSION = 1
_SPARSE = ("indices", "values")


def write_graph(
    path: str | os.PathLike[str],
    layers: Sequence[Layer],
    links: Sequence[Link],
    unit: str,
) -> None:
    """Writes layers and links to exactly ``path``, whole or not at all."""
    description = {
        "version": _VERSION,
        "unit": unit,
        "layers": [
            {
                "name": layer.name,
                "size": layer.size,
                "kind": layer.kind,
                "shape": layer.shape,
                "labels": layer.labels,
            }
            for layer in layers
        ],
        "links": [
            {
                "source": link.source,
                "target": link.target,
                "shape": tuple(link.weight.shape),
                "sparse": link.weight.is_sparse,
                "pvalue": link.pvalue is not None,
            }
            for link in links
        ],
    }
    tensors = {
        name: _plain(part)
        for number, link in enumerate(links)
        for name, part in _parts(number, link).items()
    }
    content = save(tensors, metadata={_KEY: json.dumps(description)})
    with whole_or_nothing(path) as file:
        file.write(content)


def read_graph(path: str | os.PathLike[str]) -> tuple[list[Layer], list[Link], str]:
    """Reads what :func:`write_graph` wrote; anything else is a ``ValueError``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"cannot read {path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Copies: what safe_open returns may still be a map of the file.
            names = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a saved FlowGraph, or was cut or damaged: {error}"
        ) from error
    if _KEY not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but was not written by FlowGraph.save"
        )
    try:
        return _described(json.loads(metadata[_KEY]), tensors)
    # All that a forged description can set off: wrong types, missing entries, shapes
    # torch refuses, numbers beyond int64, nesting too deep for the JSON parser.
    except (
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{path} holds a damaged FlowGraph: {error}") from error


def _described(
    description: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[list[Layer], list[Link], str]:
    if description["version"] != _VERSION:
        raise ValueError(
            f"its format has version {description['version']!r}, and only version "
            f"{_VERSION} is known; update captum_nif"
        )
    layers = [Layer(**fields) for fields in description["layers"]]
    links = []
    for number, fields in enumerate(description["links"]):
        if fields["sparse"]:
            indices, values = (tensors.pop(f"{number}.{part}") for part in _SPARSE)
            if indices.dtype != torch.int64:
                raise TypeError(f"link {number} has indices of {indices.dtype}")
            weight = torch.sparse_coo_tensor(
                indices,
                values,
                size=tuple(fields["shape"]),
                is_coalesced=True,
                check_invariants=True,
            )
        else:
            weight = tensors.pop(f"{number}.weight")
        if list(weight.shape) != fields["shape"]:
            raise ValueError(
                f"link {number} has shape {list(weight.shape)}, and {fields['shape']} "
                "was announced"
            )
        pvalue = tensors.pop(f"{number}.pvalue") if fields.get("pvalue") else None
        links.append(Link(fields["source"], fields["target"], weight, pvalue))
    if tensors:
        raise ValueError(f"unexpected tensors {sorted(tensors)}")
    return layers, links, description.get("unit", "nats")


def _parts(number: int, link: Link) -> dict[str, Tensor]:
    weight, parts = link.weight, {"weight": link.weight}
    if weight.is_sparse:
        parts = dict(zip(_SPARSE, (weight.indices(), weight.values()), strict=True))
    if link.pvalue is not None:
        parts["pvalue"] = link.pvalue
    return {f"{number}.{name}": part for name, part in parts.items()}


def _plain(tensor: Tensor) -> Tensor:
    # A copy of its own: safetensors refuses tensors that overlap in memory.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
