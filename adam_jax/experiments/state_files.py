"""Files of optimizer states: those of this package and of other programs."""

import fnmatch
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import adam_jax
from adam_jax.experiments.settings.config import require_known
from adam_jax.experiments.settings.options import ConvertOptions
from adam_jax.states.foreign import Held, hold_moments
from adam_jax.states.keras_variables import find_shapes
from adam_jax.states.parts import own_fields
from adam_jax.states.plain import find_plain_nodes
from adam_jax.states.pytorch import TURNED, list_order

SAME = ConvertOptions.to  # what is written unless it is told
_WEIGHTS = "model.weights.h5"  # in an archive of Keras
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # of files before PyTorch 1.6
# What an optimizer of Optax keeps; the arguments are those that shape its state.
_OPTAX: dict[str, tuple[set[str], dict[str, Any]]] = {
    "adam": ({"mu", "nu"}, {}),
    "amsgrad": ({"mu", "nu", "nu_max"}, {}),
    "rmsprop": ({"nu"}, {}),
    "lion": ({"mu"}, {}),
    "sgd": ({"trace"}, {"momentum": 0.9}),
}


class Read(NamedTuple):
    """Hold what a file has: the nodes of a state, and their moments."""

    kind: str  # who wrote it
    nodes: list[Any]
    others: list[str]  # the names of what it has beside moments and counts
    held: Held


def read_file(path: Path, options: ConvertOptions) -> Read:
    """Read the file of a state."""
    kind, nodes, others = _read_nodes(path, options)
    return Read(kind, nodes, others, hold_moments(nodes, None))


def _read_nodes(
    path: Path, options: ConvertOptions
) -> tuple[str, list[Any], list[str]]:
    try:
        if path.is_dir():
            return "Orbax", *find_plain_nodes(_restore(path))
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if start.startswith(b"PK") and _is_keras(path):
        return "Keras", _read_keras(path, options), []
    if start.startswith((b"PK", _OLD_TORCH)):
        return "PyTorch", _read_torch(path, options), []
    if start.endswith(b"{"):
        nodes = adam_jax.read_state(path)
        others = [
            f"{type(node).__name__}/{name}"
            for node in nodes
            for name in own_fields(node)
            if name != "count"
        ]
        return "save_state", nodes, others
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # one of many
        raise ValueError(
            f"{path} was written by none of save_state, torch.save, Keras, "
            "flax.serialization and Orbax"
        ) from error
    return "flax.serialization", *find_plain_nodes(tree)


def _restore(path: Path) -> Any:
    """Restore what an Orbax checkpoint holds, whatever its structure."""
    import orbax.checkpoint as ocp

    folder = path.absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            found: Any = checkpointer.metadata(folder).item_metadata
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found.tree
            )
            return checkpointer.restore(folder, restore_args=as_numpy)
        except (AttributeError, OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is no checkpoint of Orbax: give the folder of the item "
                "itself, which has a file _METADATA"
            ) from error


def _read_torch(path: Path, options: ConvertOptions) -> list[Any]:
    state_dict = _load_torch(path)
    names = _read_names(state_dict, options)
    turns = _turns(options)
    shapes = {}
    for (index, _), name in zip(list_order(state_dict), names, strict=False):
        arrays = [
            x
            for key, x in state_dict["state"].get(index, {}).items()
            if key != "step" and hasattr(x, "shape")
        ]
        shape = tuple(arrays[0].shape) if arrays else ()
        shape = _turn(shape, here=True) if turns(name) else shape
        shapes[name] = jax.ShapeDtypeStruct(shape, "float32")
    return list(adam_jax.read_torch(state_dict, shapes, names, turned=turns))


def _load_torch(path: Path) -> dict[str, Any]:
    """Find the state_dict of an optimizer in a file of PyTorch."""
    torch = _import("torch")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # one of many
        raise ValueError(f"{path} is no file of torch.save: {error}") from error
    states = dict(_find_states("", found))
    if not states:
        raise ValueError(f"{path} holds no state_dict of an optimizer")
    if len(states) > 1:
        raise ValueError(
            f"{path} holds the state_dicts of several optimizers, "
            f"{' and '.join(states)}: write each to a file of its own"
        )
    return next(iter(states.values()))


def _find_states(name: str, found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the state_dicts of optimizers by name, as in a checkpoint of Lightning."""
    if isinstance(found, dict) and {"state", "param_groups"} <= found.keys():
        yield name, found
    elif isinstance(found, dict):
        for key, x in found.items():
            yield from _find_states(str(key), x)
    elif isinstance(found, list):
        for number, x in enumerate(found):
            yield from _find_states(f"{name}[{number}]", x)


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}, which reads and writes this kind of file: pip install {name}"
        ) from None


def _is_keras(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _open_keras(path: Path, options: ConvertOptions) -> tuple[Any, tuple[Any, ...]]:
    """Give the HDF5 file in an archive of Keras, and what tells how to read it."""
    h5py, names = _import("h5py"), _read_file_of_names(options)
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            file = h5py.File(io.BytesIO(archive.read(_WEIGHTS)), "r+")
        optimizer = config["compile_config"]["optimizer"]
        variables = {name: x[()] for name, x in file["optimizer/vars"].items()}
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no model that Keras saved compiled") from error
    shapes = find_shapes(variables, names, optimizer)
    return file, (variables, shapes, names, optimizer)


def _read_keras(path: Path, options: ConvertOptions) -> list[Any]:
    file, told = _open_keras(path, options)
    file.close()
    return list(adam_jax.read_keras(*told))


def _make_keras_writer(
    options: ConvertOptions, like: Path, old: Read
) -> Callable[[Path], None]:
    """Give what writes the archive of --like with another state."""
    file, told = _open_keras(like, options)
    with file:
        for number, value in enumerate(adam_jax.write_keras(old.nodes, *told)):
            file["optimizer/vars"][str(number)][...] = value
        file.flush()
        weights = file.id.get_file_image()

    def write(path: Path) -> None:
        with zipfile.ZipFile(like) as archive:
            items = {item: archive.read(item) for item in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for item, data in items.items():
                archive.writestr(item, weights if item.filename == _WEIGHTS else data)

    return write


def _read_names(state_dict: dict[str, Any], options: ConvertOptions) -> list[str]:
    """Give the paths of the parameters of a PyTorch optimizer, in its order."""
    if options.names:
        return _read_file_of_names(options)
    groups = state_dict["param_groups"]
    if all("param_names" in group for group in groups):
        return [x.replace(".", "/") for group in groups for x in group["param_names"]]
    raise ValueError("the PyTorch optimizer was given no names: pass --names")


def _read_file_of_names(options: ConvertOptions) -> list[str]:
    if not options.names:
        raise ValueError("which parameter is which? Pass --names")
    try:
        lines = options.names.read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"--names {options.names}: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]


def _turns(options: ConvertOptions) -> Callable[[str], bool]:
    return lambda name: bool(options.turned) and fnmatch.fnmatch(name, options.turned)


def choose_writer(options: ConvertOptions, old: Read) -> Callable[[Path], None]:
    """Choose what writes the new file."""
    kind, _, name = options.to.partition(".")
    if options.to == SAME or options.to in adam_jax.FORMATS:
        dtype = None if options.to == SAME else options.to
        return lambda path: adam_jax.save_state(
            path, old.nodes, mu_dtype=dtype, nu_dtype=dtype
        )
    if kind == "optax":
        from flax import serialization

        data = serialization.to_bytes(_adopt_by_optax(name, old))

        def write(path: Path) -> None:
            path.write_bytes(data)

        return write
    known = (SAME, *adam_jax.FORMATS, "torch", "keras", "optax")
    require_known("--to", options.to, known)
    if options.like is None:
        raise ValueError(f"--to {options.to} needs --like, a file of the new optimizer")
    if options.to == "keras":
        return _make_keras_writer(options, options.like, old)
    return _make_torch_writer(options, options.like, old)


def _make_torch_writer(
    options: ConvertOptions, like: Path, old: Read
) -> Callable[[Path], None]:
    """Give what writes the state_dict of --like with another state."""
    torch = _import("torch")
    new = _load_torch(like)
    names, turns = _read_names(new, options), _turns(options)
    own, shapes = _list_shapes(old.held), []
    for name in names:
        shape = own.get(name, ())
        shapes.append(_turn(shape, here=False) if turns(name) else shape)
    written = adam_jax.write_torch(old.nodes, new, names, shapes, turned=turns)
    for state in written["state"].values():
        state.update({key: torch.from_numpy(x) for key, x in state.items()})
    return lambda path: torch.save(written, path)


def _list_shapes(held: Held) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the parameters that have moments, by their paths."""
    trees = held.moments.values()
    return {path: x.shape for tree in trees for path, x in tree.items()}


def _turn(shape: tuple[int, ...], here: bool) -> tuple[int, ...]:
    """Give the shape here of what is turned in PyTorch, or the shape there."""
    axes = TURNED.get(len(shape), range(len(shape)))
    return tuple(shape[i] for i in (axes if here else np.argsort(axes)))


def _adopt_by_optax(name: str, old: Read) -> Any:
    """Make the state of an optimizer of Optax."""
    from flax import traverse_util

    old.held.expect_all()
    moments = {*old.held.moments}
    fitting = [x for x, (own, _) in _OPTAX.items() if own == moments]
    if not name and not fitting:
        raise ValueError(
            f"which optimizer of Optax keeps {', '.join(sorted(moments))}? Write, say, "
            "--to optax.adamw"
        )
    name = name or fitting[0]
    known = [f"optax.{x}" for x in adam_jax.OPTIMIZERS if hasattr(optax, x)]
    expected = "an optimizer that both Optax and adam_jax have"
    require_known("--to", f"optax.{name}", known, expected)
    tx = getattr(optax, name)(1e-3, **_OPTAX.get(name, ((), {}))[1])
    shapes = _list_shapes(old.held)
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    params = traverse_util.unflatten_dict(zeros, sep="/")
    # These do not depend on the number of steps, and may not tell it.
    count = 0 if name in ("sgd", "rmsprop", "adagrad") and not old.held.counts else None
    adopted = adam_jax.adopt_state(tx, old.nodes, params, count=count)
    alone = {*adopted.dropped} & {*adopted.started} - {"count"}
    if alone:
        raise ValueError(
            f"optax.{name} cannot go on with {min(alone)}: it keeps another moment "
            "beside it, which the state lacks"
        )
    return adopted.state
