"""The attribution methods that are compared, all called in the same way.

A method is made from a model, a background and a seed, and then explains batches:

    explain = METHODS["NIF"](model, background, seed)
    attributions = explain(inputs, targets)

Every method explains what the model returns (for classifiers here: logits), gets the
same background, and keeps the shape of the inputs. To compare another one, add a line
to :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, KernelShap
from torch import Tensor, nn

from benchmarks.data.models import seeded
from captum_nif import NIFAttribution

Explain = Callable[[Tensor, Tensor], Tensor]
"""Attributions, of the inputs' shape, of inputs [N, ...] to target classes [N]."""

Make = Callable[[nn.Module, Tensor, int], Explain]
"""Makes an explainer of a model from a background, [B, ...], and a seed."""

IG_STEPS = 50
GRADIENT_SHAP_DRAWS = 100


class Method(NamedTuple):
    """How an explainer is made, and what the settings are, in words."""

    make: Make
    described: str

    def __call__(self, model: nn.Module, background: Tensor, seed: int = 0) -> Explain:
        """An explainer of the model; what a method fits is fitted here."""
        return self.make(model, background, seed)


def nif(**options: Any) -> Method:
    r"""
    Neural Information Flow, fitted on the background.

    Args:

        **options: Arguments of :class:`captum_nif.NIFAttribution`.

    Returns:

        Method: The method.

    Examples::

        >>> nif(preset="paper").described
        "NIFAttribution(model, preset='paper').fit(background)"
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        fitted = NIFAttribution(model, **options).fit(background)
        return lambda inputs, targets: fitted.attribute(inputs, target=targets)

    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return Method(make, f"NIFAttribution(model{given}).fit(background)")


def integrated_gradients(mean_baseline: bool) -> Method:
    r"""
    Integrated Gradients (Sundararajan et al. 2017) from one baseline.

    Args:

        mean_baseline (bool): Whether the baseline is the background's mean, or zero.

    Returns:

        Method: The method.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        gradients = IntegratedGradients(model)
        baseline = background.mean(dim=0, keepdim=True)
        baseline = baseline if mean_baseline else torch.zeros_like(baseline)
        return lambda inputs, targets: gradients.attribute(
            inputs, baseline.expand_as(inputs), target=targets, n_steps=IG_STEPS
        )

    kind = "the mean of the background" if mean_baseline else "zero"
    return Method(make, f"IntegratedGradients, {IG_STEPS} steps, baseline {kind}")


def gradient_shap(draws: int = GRADIENT_SHAP_DRAWS) -> Method:
    r"""
    Expected gradients (Erion et al. 2021): the whole background as baselines.

    Args:

        draws (int, optional): Baselines, each with a place on the way from it to the
            sample, that are drawn for each sample. Default: 100

    Returns:

        Method: The method. Every call draws the same numbers.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        gradients = GradientShap(model)

        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            with seeded(seed):
                return gradients.attribute(
                    inputs, background, n_samples=draws, target=targets
                )

        return explain

    return Method(
        make, f"GradientShap, {draws} draws without noise, baselines the background"
    )


def kernel_shap() -> Method:
    r"""
    KernelShap (Lundberg and Lee 2017); absent features take the background's mean.

    Returns:

        Method: The method. Every sample is explained by the same coalitions.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        shap = KernelShap(model)
        baseline = background.mean(dim=0, keepdim=True)
        coalitions = coalitions_for(background[0].numel())

        def explain_one(sample: Tensor, target: Tensor) -> Tensor:
            with seeded(seed):
                return shap.attribute(
                    sample,
                    baseline,
                    target=target,
                    n_samples=coalitions,
                    perturbations_per_eval=coalitions,
                )

        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            # Captum fits a model to each sample anyway, and warns where it is batched.
            pairs = zip(inputs.split(1), targets.split(1), strict=True)
            return torch.cat([explain_one(*pair) for pair in pairs])

        return explain

    return Method(
        make,
        "KernelShap, 5 coalitions for each feature but at least "
        f"{coalitions_for(1)}, baseline the mean of the background",
    )


def coalitions_for(features: int) -> int:
    """How many coalitions KernelShap evaluates for each sample."""
    return max(300, 5 * features)


def input_x_gradient() -> Method:
    r"""
    The input times the gradient (Shrikumar et al. 2016).

    Returns:

        Method: The method. It needs no background.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        gradients = InputXGradient(model)

        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            # A leaf of its own: Captum would ask the caller's tensor for a gradient.
            leaf = inputs.detach().clone().requires_grad_()
            return gradients.attribute(leaf, target=targets).detach()

        return explain

    return Method(make, "InputXGradient")


def chance() -> Method:
    r"""
    Normal noise, what every method has to beat.

    Returns:

        Method: The method. Every call draws the same numbers.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)

        return explain

    return Method(make, "independent normal noise")


METHODS: dict[str, Method] = {
    "NIF": nif(),
    "NIF, paper": nif(preset="paper"),
    "NIF, faithful": nif(preset="faithful"),
    "NIF, gradient free": nif(preset="gradient_free"),
    "IG, zero": integrated_gradients(mean_baseline=False),
    "IG, mean": integrated_gradients(mean_baseline=True),
    "GradientShap": gradient_shap(),
    "KernelShap": kernel_shap(),
    "InputXGradient": input_x_gradient(),
    "random": chance(),
}
"""The compared methods by name; figures draw those that begin with NIF thickest."""
