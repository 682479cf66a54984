"""Imports point down only, in folders too, and the root exports what it documents."""

import ast
import inspect
import operator
import pathlib
import re

import pytest

import adam_jax

ROOT = pathlib.Path(adam_jax.__file__).parent
# Modules and folders: each may import from those before it.
LAYERS = [
    "choice",
    "placement",
    "native",
    "tracing",
    "randomness",
    "numerics",
    "measures",
    "hyperparams",
    "checks",
    "moments",
    "recipes",
    "stages",
    "coordinates",
    "states",
    "figures",
    "wrappers",
    "family",
    "fused",
    "experiments",
]
# The same in the command line.
ROOMS = [
    "__init__",
    "interrupts",
    "machine",
    "metrics",
    "settings",
    "pictures",
    "problems",
    "running",
    "study",
    "report",
    "trace",
    "bench",
    "family",
    "state_files",
    "convert",
    "commands",
    "cli",
    "__main__",
]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
)
ROOT_EXPORT = "the root"
# What has grown beyond a page of this many lines holds two ideas.
LONGEST = 350


def source(module):
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").read_text()


def imported(module):
    """Return what of the package a module imports: modules, as "folder.module"."""
    names = set()
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            wholes = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are to be absolute"
            wholes = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for whole in wholes:
            package, _, rest = whole.partition(".")
            if package == "adam_jax":
                parent = rest.rpartition(".")[0]
                names.add(rest if rest in MODULES else parent or ROOT_EXPORT)
    return names


def layer(module):
    """Return the numbers of a module's layer, and of its room in the command line.

    What the root exports is above `fused`.
    """
    folder, *others = module.split(".")
    if folder == ROOT_EXPORT:
        return LAYERS.index("experiments"), -1
    room = ROOMS.index(others[0]) if folder == "experiments" and others else -1
    return LAYERS.index(folder), room


def in_library(module):
    """Tell whether a module is not of the command line."""
    return not module.startswith("experiments.")


def test_every_module_and_folder_has_a_layer():
    found = {path.stem for path in ROOT.glob("[!_]*.py")}
    found |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(LAYERS)
    assert {m.split(".")[1] for m in MODULES if not in_library(m)} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for other in imported(module):
        assert layer(other) <= layer(module), other


def test_modules_of_the_command_line_have_names_of_their_own():
    names = [m.split(".")[-1] for m in MODULES if not in_library(m)]
    assert {x for x in names if names.count(x) > 1} <= {"__init__"}


def test_no_circle_in_a_folder():
    """What imports nothing that is left is taken away, until nothing is left."""
    left = {
        module: {x for x in imported(module) if layer(x) == layer(module)} - {module}
        for module in MODULES
    }
    while left:
        free = [m for m, found in left.items() if not found & left.keys()]
        assert free, f"these import each other in a circle: {sorted(left)}"
        left = {m: found for m, found in left.items() if m not in free}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_holds_one_idea(module):
    assert len(source(module).splitlines()) <= LONGEST
    if in_library(module):  # and is not named like something it exports
        tree = ast.parse(source(module))
        names = [node.name for node in tree.body if hasattr(node, "name")]
        assert module.split(".")[-1] not in names


def test_all_is_what_is_exported_and_documented():
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    (listed,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert set(adam_jax.__all__) == set(ast.literal_eval(listed))
    for name, factory in adam_jax.OPTIMIZERS.items():
        assert getattr(adam_jax, name) is factory
    for name in adam_jax.__all__:
        value = getattr(adam_jax, name)
        if callable(value):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize(
    "name", [*adam_jax.__all__, *(f"fused.{name}" for name in adam_jax.fused.__all__)]
)
def test_args_name_every_argument(name):
    value = operator.attrgetter(name)(adam_jax)
    if inspect.isfunction(value):
        for argument in inspect.signature(value).parameters:
            assert re.search(rf"^  \**{argument}: ", inspect.getdoc(value), re.M), (
                argument
            )


@pytest.mark.parametrize("module", [*filter(in_library, MODULES)])
def test_docstrings_speak_of_every_argument(module):
    for node in ast.parse(source(module)).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            for argument in arguments:
                documented = ast.get_docstring(node) or ""
                assert re.search(rf"\b{argument.arg}\b", documented), argument.arg
