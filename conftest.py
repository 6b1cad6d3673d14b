"""What pytest passes over when it looks for doctests in every file."""

from importlib.util import find_spec

TRITON = "captum_nif/estimators/kernels/triton_plane.py"

# Triton is for Linux alone, and that file cannot be imported without it.
collect_ignore = [TRITON] if find_spec("triton") is None else []
