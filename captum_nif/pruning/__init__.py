r"""Pruning: zero the weights that carry little information, and see what it costs.

Masks are those of ``torch.nn.utils.prune``, so that a pruned model trains on, saves and
is made permanent as users expect.
"""

from captum_nif.pruning.curve import CurveRow, plot_pruning_curve, pruning_curve
from captum_nif.pruning.masking import prune

__all__ = ["CurveRow", "plot_pruning_curve", "prune", "pruning_curve"]
