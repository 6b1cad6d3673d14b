"""What decides the class outranks independent noise, whatever the architecture.

Inputs are independent, and the class depends on the first feature alone, so there is
one right answer. Nothing here was tuned to these seeds.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_nif import NIFAttribution

SEEDS = range(5)


class Residual(nn.Module):
    """Residual blocks: the signal may pass through the blocks or around them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
            for _ in range(2)
        )
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x)


class SignalOnShortcut(nn.Module):
    """The long route sees only noise; the class comes from the shortcut."""

    def __init__(self):
        super().__init__()
        self.long = nn.Sequential(
            nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 8)
        )
        self.short = nn.Linear(1, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(F.relu(self.long(x[:, 1:]) + self.short(x[:, :1])))


class SignalOnLongRoute(SignalOnShortcut):
    """The other way round: the shortcut sees only noise."""

    def __init__(self):
        super().__init__()
        self.long[0] = nn.Linear(1, 12)
        self.short = nn.Linear(7, 8)

    def forward(self, x):
        return self.head(F.relu(self.long(x[:, :1]) + self.short(x[:, 1:])))


def mlp():
    return nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 2),
    )


def features(samples, generator):
    return torch.randn(samples, 8, generator=generator)


def images(samples, generator):
    """6 x 6 noise, whose first 2 x 2 block has a common part that decides the class."""
    x = torch.randn(samples, 1, 6, 6, generator=generator)
    x[:, :, :2, :2] += 2 * torch.randn(samples, 1, 1, 1, generator=generator)
    return x


def trained(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@functools.cache
def problem(architecture, seed):
    """A trained model, its background, samples, and the features as groups."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    is_image = architecture is cnn
    draw = images if is_image else features
    x = draw(600, generator)
    first = x[:, 0, :2, :2].mean((1, 2)) if is_image else x[:, 0]
    model = trained(architecture(), x, (first > 0).long())
    mask = torch.arange(9).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    groups = {"feature_mask": mask} if is_image else {}
    return model, draw(400, generator), draw(40, generator), groups


def signal_and_noise(architecture, seed, **options):
    """Mean |attribution| of each feature over samples, and the attribution matrix."""
    model, background, samples, groups = problem(architecture, seed)
    nif = NIFAttribution(model, **options).fit(background, batch_size=len(background))
    attributions = nif.attribute(samples, model(samples).argmax(1), **groups)
    strength = attributions.abs().mean(0)
    if groups:
        strength = strength[0, ::2, ::2].flatten()
    return strength, nif.attribution_matrix(**groups)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "architecture", [mlp, cnn, Residual, SignalOnShortcut, SignalOnLongRoute]
)
def test_what_decides_the_class_outranks_noise(architecture, seed):
    strength, matrix = signal_and_noise(architecture, seed)
    assert strength.argmax() == 0
    assert strength[0] > 2 * strength[1:].max()
    assert (matrix.argmax(0) == 0).all()
    assert (matrix[0] > 2 * matrix[1:].max(0).values).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "architecture", [mlp, cnn, Residual, SignalOnShortcut, SignalOnLongRoute]
)
def test_the_faithful_preset_puts_what_decides_first(architecture, seed):
    strength, matrix = signal_and_noise(architecture, seed, preset="gradient_free")
    assert strength.argmax() == 0
    assert strength[0] > 2 * strength[1:].max()
    assert (matrix.abs().argmax(0) == 0).all()
    assert matrix[0, 0] < 0 < matrix[0, 1], "the second class is the positive one"
