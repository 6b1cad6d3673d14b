r"""What is said where values cannot be followed: who, why, and the way out."""

from __future__ import annotations

import re


def unfollowed(reader: str, why: str) -> NotImplementedError:
    """A layer or the output reads a tensor that cannot be followed.

    Args:
        reader (str): which, in words.
        why (str): what was not understood; it may end in the module whose code it was,
            as ``", in 'encoder.mixer' (Mixer)"``.
    """
    return NotImplementedError(
        f"{reader} reads a tensor that cannot be followed: {why}. {_advice(why)}"
    )


def no_layer(name: str, why: str, around: str = "") -> NotImplementedError:
    """A call cannot be a layer.

    Args:
        name (str): its name in the graph.
        why (str): see :func:`unfollowed`.
        around (str): the path of the module around it, if there is one.
    """
    return NotImplementedError(
        f"The layer {name!r} cannot be a layer of the graph: {why}. "
        f"{_advice(why, around)}"
    )


def while_compiling() -> NotImplementedError:
    """The model compiles functions as it runs."""
    return NotImplementedError(
        "The model compiles a function as it runs (by `torch.compile`, as "
        "`flex_attention` does), which cannot be followed: call within "
        '`with torch.compiler.set_stance("force_eager"):`, where it runs as it is '
        "written."
    )


def _advice(why: str, around: str = "") -> str:
    named = re.search(r", in '([^']+)' \(\w+\)$", why)
    path = around or (named.group(1) if named else "")
    if path == "model":  # the whole is no layer of itself
        path = ""
    remedy = "Naming the module around it in `layers=` makes it one layer."
    if path:
        remedy = f'`layers="+{path}"` makes the module {path!r} one layer.'
    if "mixes samples" not in why:
        return remedy
    alone = "The values of a sample must depend on that sample alone."
    if not path:
        return alone
    return f"{alone} If they do, as in a mixture of experts: {remedy}"
