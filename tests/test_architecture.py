"""The layout of the package: imports go downward, public names stay where they are."""

from __future__ import annotations

import ast
import importlib
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import captum_nif

PACKAGE = Path(captum_nif.__file__).parent
FLOORS = (
    {"attribution", "pruning"},
    {"flow", "plotting"},
    {"network", "tracing"},
    {"estimators", "graph"},
    {"_compile"},
    {"_blocks", "_captum", "_files", "_messages"},
)
"""From the top down: what stands on a floor may import from floors below it."""

EXPORTED_BY_0_1_0 = """EDGE MINE CurveRow FlowGraph GaussianCopula Layer Link MixedKSG
NIFAttribution PMIEstimator Prepared Structure Trace betweenness_centrality communities
flow_shares gamma_sweep link_pvalues modularity plot_attribution_matrix plot_flow
plot_pruning_curve plot_saliency prune pruning_curve save_html summarize to_html trace
write_gexf write_graphml write_json""".split()


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, which the folder gives."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path, lazy: bool = True) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazy else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "captum_nif"}


def place(module: str) -> str:
    """The folder or file at the top of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    return next(n for n, names in enumerate(FLOORS) if name in names)


def test_every_folder_stands_on_a_floor():
    named = {place(module) for module in MODULES} - {""}
    assert named == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module):
    if not place(module):  # the package itself gathers what is public
        return
    for other in imports_of(MODULES[module]):
        if place(other) not in ("", place(module)):
            assert floor(place(other)) > floor(place(module)), f"{module} -> {other}"
        assert place(other), f"{module} imports the package that it is a part of"


def test_modules_do_not_import_in_circles():
    sorter = TopologicalSorter(
        {name: imports_of(path, lazy=False) - {name} for name, path in MODULES.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "module", [name for name, path in MODULES.items() if path.name == "__init__.py"]
)
def test_every_folder_has_one_sentence_and_says_what_is_public(module):
    found = importlib.import_module(module)
    assert re.fullmatch(r"[^\n]+\.", (found.__doc__ or "").strip().split("\n\n")[0])
    if found.__name__.endswith("kernels"):  # nothing there is public
        return
    assert found.__all__ == sorted(set(found.__all__), key=sort_key)
    assert all(hasattr(found, name) for name in found.__all__)


def sort_key(name: str) -> tuple[int, str]:
    """Constants, classes, functions: as ruff sorts ``__all__``."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_names_of_the_first_release_are_still_there():
    assert set(EXPORTED_BY_0_1_0) <= set(captum_nif.__all__)


def test_modules_of_the_package_can_be_read():
    long = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in MODULES.items()
    }
    # One class that is mostly docstrings, and the longest of the others.
    assert {name for name, lines in long.items() if lines > 600} == {
        "captum_nif.attribution"
    }


def public_objects() -> dict[str, object]:
    found = {}
    for name in captum_nif.__all__:
        found[name] = getattr(captum_nif, name)
        if isinstance(found[name], type):
            for member, value in vars(found[name]).items():
                if not member.startswith("_") and callable(value):
                    found[f"{name}.{member}"] = value
    return found


@pytest.mark.parametrize("name", public_objects())
def test_public_docstrings_refer_to_public_places(name):
    doc = getattr(public_objects()[name], "__doc__", None) or ""
    for target in re.findall(r":(?:func|class|meth|data):`~?(captum_nif[\w.]*)`", doc):
        parts = target.split(".")[1:]
        assert parts[0] in captum_nif.__all__, f"{name} names {target}"
        found = captum_nif
        for part in parts:
            found = getattr(found, part)
