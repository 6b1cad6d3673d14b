"""Data whose relevant features are known, because they were made so."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.data.datasets import Dataset

SAMPLES = 1500
TEST_SAMPLES = 300


class Planted(NamedTuple):
    """A data set, and which features of each test sample decide its class."""

    dataset: Dataset
    relevant: Tensor


def planted_table(seed: int = 0) -> Planted:
    r"""
    Twelve normal variables, three of which decide: the class is the largest of them.

    Three of the others are correlated with one of them each (0.8), and tell about the
    class without deciding it; six are noise. The classes are exact, so that a model
    needs the three alone.

    Args:

        seed (int, optional): Draws the data. Default: 0

    Returns:

        Planted: Samples of shape ``[12]``, relevant in the first three.

    Examples::

        >>> planted_table().dataset
        Dataset(table: 1200 + 300 samples of shape (12,), 3 classes)
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 12, generator=generator)
    deciding = x[:, :3]
    x[:, 3:6] = 0.8 * deciding + 0.6 * x[:, 3:6]
    names = [f"{kind} {i}" for kind in ("deciding", "correlated") for i in range(3)]
    names += [f"noise {i}" for i in range(6)]
    relevant = torch.zeros_like(x, dtype=torch.bool)
    relevant[:, :3] = True
    return _planted("table", x, deciding.argmax(dim=1), relevant, names)


def planted_patch(seed: int = 0) -> Planted:
    r"""
    Noisy images with a bright patch; the class is the quarter that it lies in.

    Eight by eight pixels between 0 and 0.5; the patch, three by three, adds 0.5 to its
    pixels.

    Args:

        seed (int, optional): Draws the data. Default: 0

    Returns:

        Planted: Samples of shape ``[1, 8, 8]``, relevant where the patch is.

    Examples::

        >>> planted_patch().relevant.flatten(1).sum(dim=1).unique()
        tensor([9])
    """
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.rand(SAMPLES, 1, 8, 8, generator=generator)
    quarter = torch.randint(4, (SAMPLES,), generator=generator)
    # In a quarter of four by four pixels, the patch begins at one of two by two places.
    begins = torch.randint(2, (SAMPLES, 2), generator=generator)
    row = (quarter // 2 * 4 + begins[:, 0]).view(-1, 1, 1, 1)
    column = (quarter % 2 * 4 + begins[:, 1]).view(-1, 1, 1, 1)
    rows, columns = torch.arange(8).view(1, 1, 8, 1), torch.arange(8)
    in_rows = (row <= rows) & (rows < row + 3)
    relevant = in_rows & (column <= columns) & (columns < column + 3)
    names = [f"pixel {i},{j}" for i in range(8) for j in range(8)]
    return _planted("patch", x + 0.5 * relevant, quarter, relevant, names)


def _planted(
    name: str, x: Tensor, classes: Tensor, relevant: Tensor, feature_names: list[str]
) -> Planted:
    """The last samples become the test part."""
    cut = len(x) - TEST_SAMPLES
    dataset = Dataset(
        name,
        x[:cut],
        classes[:cut],
        x[cut:],
        classes[cut:],
        tuple(feature_names),
        tuple(f"class {c}" for c in range(int(classes.max()) + 1)),
        offset=torch.tensor(0.0),
        scale=torch.tensor(1.0),
    )
    return Planted(dataset, relevant[cut:])
