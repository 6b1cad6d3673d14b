"""From a population to links (Eq. 3), and from links to attributions (Eq. 4)."""

from captum_nif.flow.permutation_test import link_pvalues

__all__ = ["link_pvalues"]
