"""What this package takes from Captum's private modules: the only place that does."""

from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _is_tuple,
)
from captum._utils.progress import progress
from captum._utils.typing import TargetType, TensorOrTupleOfTensorsGeneric
from captum.log import log_usage

format_additional_forward_args = _format_additional_forward_args
format_output = _format_output
is_tuple = _is_tuple

__all__ = [
    "TargetType",
    "TensorOrTupleOfTensorsGeneric",
    "format_additional_forward_args",
    "format_output",
    "is_tuple",
    "log_usage",
    "progress",
]
