"""Imports point down only, and the root exports what the README promises."""

import ast
import pathlib

import pytest

import adam_jax

ROOT = pathlib.Path(adam_jax.__file__).parent
# Each module may import from those before it, fused/ from all of them, and experiments/
# from these and fused/.
LAYERS = [
    "numerics",
    "hyperparams",
    "checks",
    "formats",
    "accumulators",
    "gathering",
    "transforms",
    "updates",
    "conversion",
    "rounding",
    "packing",
    "guards",
    "figures",
    "diagnostics",
    "ancestors",
    "followups",
    "optimizers",
]


def imported(path):
    """Return the modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "adam_jax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            names |= {parts[1]} if parts[0] == "adam_jax" else set()
    return names


def test_every_module_has_a_layer():
    assert sorted(LAYERS) == sorted(p.stem for p in ROOT.glob("[!_]*.py"))


@pytest.mark.parametrize("module", LAYERS)
def test_imports_point_down(module):
    below = set(LAYERS[: LAYERS.index(module)])
    assert imported(ROOT / f"{module}.py") <= below


def test_fused_knows_nothing_of_experiments():
    for path in (ROOT / "fused").glob("*.py"):
        assert imported(path) <= {*LAYERS, "fused"}


def test_every_optimizer_and_stage_is_exported_and_documented():
    for name, factory in adam_jax.OPTIMIZERS.items():
        assert getattr(adam_jax, name) is factory
    for name in dir(adam_jax):
        value = getattr(adam_jax, name)
        if callable(value):
            assert value.__doc__, name
