"""A file of a state, of which others can read names, moments and counts."""

import json
import os
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax import numerics
from adam_jax.hyperparams import shown
from adam_jax.moments.blocks import EightBit
from adam_jax.moments.formats import Dense, Stored
from adam_jax.moments.maxima import AxisMaxima
from adam_jax.moments.sharing import Factored, MeanOver
from adam_jax.moments.storage import Storage, as_format
from adam_jax.moments.trees import decode, store
from adam_jax.states.buffers import unpack
from adam_jax.states.parts import (
    TREES,
    by_name,
    iterate_nodes,
    own_fields,
    stored_moments,
)
from adam_jax.states.plain import join_stored, make_node

VERSION = 1
"""The layout that `save_state` writes. `read_state` reads all up to it."""

_KEY = "adam_jax_state"  # in the metadata of the file
_READERS = {"dense": Dense, "8bit": EightBit}
_READERS |= {"factored": Factored, "mean_over": MeanOver, "axis_maxima": AxisMaxima}


def save_state(
    file: str | os.PathLike[str],
    state: Any,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> None:
    """Write an optimizer state to a safetensors file.

    The state may be of this package or of Optax, or what `read_torch` returns. All that
    it holds is written: moments as they are stored (those in a format of your own as
    arrays), counts, hyperparameters, figures. `read_state` reads the file, and others
    can: docs/states.md describes it.

    The file is replaced as a whole, at the end. The process must see all of every
    array: where several share them, use Orbax, which writes in pieces.

    Args:
      file: its path.
      state: the state, or a dict or an object that holds one, such as a TrainState:
        what lies beside the state there is not written.
      mu_dtype: how the file stores first moments and traces: a dtype, a `Format` or the
        name of one, rounded to nearest; None means as the state does.
      nu_dtype: the same for second moments and their maxima. (One that elements share
        stays as it is where there is no first moment to tell the parameter's shape.)

    Raises:
      ValueError: if there is nothing to write; for an unknown format; for complex128
        and other types that safetensors lacks.
      OSError: if the file cannot be written.
      ModuleNotFoundError: without safetensors.

    Example: the names in the file.

      >>> import adam_jax, safetensors, tempfile
      >>> params = {"dense": {"kernel": jnp.ones((64, 64))}}
      >>> state = adam_jax.adam(1e-3, nu_dtype="8bit").init(params)
      >>> file = f"{tempfile.mkdtemp()}/adam.safetensors"
      >>> save_state(file, state)
      >>> with safetensors.safe_open(file, "numpy") as opened:
      ...     for name in sorted(opened.keys()):
      ...         print(name, opened.get_tensor(name).dtype)
      0/count int32
      0/mu/dense/kernel float32
      0/nu.exponents/dense/kernel uint8
      0/nu/dense/kernel uint8
      0/weights float32
      1/count int32
    """
    safetensors = _import_safetensors()
    if os.path.exists(file) and not os.path.isfile(file):  # it would be replaced
        raise OSError(f"cannot write {os.fspath(file)}: it is there, and no file")
    formats = {
        name: None if dtype is None else as_format(name, dtype)
        for name, dtype in (("mu_dtype", mu_dtype), ("nu_dtype", nu_dtype))
    }
    tensors, nodes = {}, []
    for number, node in enumerate(iterate_nodes(unpack(state))):
        moments = stored_moments(node)
        like = moments["mu"].values if "mu" in moments else None
        arrays, written, keys = {}, {}, {}
        for name, stored in moments.items():
            signed = name in ("mu", "trace")
            format = formats["mu_dtype" if signed else "nu_dtype"]
            stored = _convert(stored, format, signed, like)
            kind = type(stored.format)
            written[name] = next(x for x, reader in _READERS.items() if reader is kind)
            arrays[name] = stored.values
            fields = stored.format._asdict().items()
            arrays |= {f"{name}.{field}": tree for field, tree in fields}
        arrays |= own_fields(node)
        if "weights" in node._fields:
            arrays["weights"] = node.weights
        leaves = {name: by_name(tree) for name, tree in arrays.items()}
        for name, named in leaves.items():
            for leaf, x in named.items():
                full = _join(number, name, leaf)
                if isinstance(x, jax.ShapeDtypeStruct):
                    raise ValueError("the state is abstract: pass its arrays.")
                if jnp.issubdtype(numerics.dtype_of(x), jax.dtypes.prng_key):
                    keys[full] = str(jax.random.key_impl(x))
                    x = jax.random.key_data(x)
                if full in tensors:
                    raise ValueError(
                        f"two arrays are named {shown(full)}: rename one of them."
                    )
                tensors[full] = np.asarray(x, order="C")
        description = {
            "kind": type(node).__name__,
            "formats": written,
            "arrays": {name: sorted(x) for name, x in sorted(leaves.items()) if x},
            "scheduled": sorted(getattr(node, "hyperparams_states", ())),
            "keys": keys,
        }
        nodes.append({name: x for name, x in description.items() if x})
    if not tensors:
        raise ValueError(
            "found no state of an optimizer to save: pass what tx.init or tx.update "
            "returned."
        )
    header = {"version": VERSION, "adam_jax": version("adam_jax"), "nodes": nodes}
    try:
        safetensors.numpy.save_file(tensors, file, {_KEY: json.dumps(header)})
    except safetensors.SafetensorError as error:
        kind = OSError if "I/O" in str(error) else ValueError
        raise kind(f"cannot write {os.fspath(file)}: {error}") from None
    mask = os.umask(0)  # there is no other way to ask for it
    os.umask(mask)
    os.chmod(file, 0o666 & ~mask)  # safetensors lets nobody else read it


def read_state(file: str | os.PathLike[str]) -> list[Any]:
    """Read what `save_state` wrote, in a form that `adopt_state` continues.

    Args:
      file: its path.

    Returns:
      The nodes of the state, from the outside in. Their moments are dicts from the
      paths of parameters, such as "dense/kernel", to NumPy arrays. `load_moments`,
      `convert_state` and `save_state` take them too.

    Raises:
      ValueError: for a file that `save_state` did not write, that is damaged, or that
        is of a later version.
      ModuleNotFoundError: without safetensors.

    Example: a run goes on from the file, with bfloat16 moments.

      >>> import adam_jax, tempfile
      >>> params = {"w": jnp.ones(3)}
      >>> tx = adam_jax.adam(1e-3)
      >>> _, state = tx.update(params, tx.init(params))
      >>> file = f"{tempfile.mkdtemp()}/adam.safetensors"
      >>> save_state(file, state)
      >>> narrow = adam_jax.adam(1e-3, mu_dtype="bfloat16")
      >>> adopted = adam_jax.adopt_state(narrow, read_state(file), params)
      >>> print(adopted.state[0].mu["w"], adopted.dropped, adopted.started)
      [0.100098 0.100098 0.100098] () ()
    """
    safetensors = _import_safetensors()
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            header = json.loads((opened.metadata() or {}).get(_KEY, "null"))
            found = header and header["version"]
            if found is None or found > VERSION:
                raise ValueError(
                    f"{os.fspath(file)} was not written by save_state()."
                    if found is None
                    else f"{os.fspath(file)} is of version {found}, written by "
                    f"adam_jax {header['adam_jax']}; this adam_jax reads up to "
                    f"{VERSION}: install a newer one."
                )
            return [
                _read_node(opened, number, node)
                for number, node in enumerate(header["nodes"])
            ]
    except safetensors.SafetensorError as error:
        raise ValueError(f"{os.fspath(file)} is damaged: {error}") from None


def _read_node(opened: Any, number: int, header: dict[str, Any]) -> Any:
    """Return one node of a state.

    Args:
      opened: the file.
      number: that of the node.
      header: what the file says of it.
    """
    kind: str = header["kind"]
    formats, keys = header.get("formats", {}), header.get("keys", {})
    arrays: dict[str, Any] = {name: {} for name in formats}
    for name, leaves in header.get("arrays", {}).items():
        for leaf in leaves:
            full = _join(number, name, leaf)
            x = opened.get_tensor(full)
            if full in keys:
                x = jax.random.wrap_key_data(jnp.asarray(x), impl=keys[full])
            arrays.setdefault(name, {})[leaf] = x
    own = {moment: x for x, moment in TREES.get(kind, {}).items()}
    moments = {}
    for name, format in formats.items():
        reader = _READERS[format]
        beside = {x: arrays.pop(f"{name}.{x}", {}) for x in reader._fields}
        moments[own[name]] = join_stored(reader, arrays.pop(name), beside)
    fields: dict[str, Any] = {}
    for name, named in arrays.items():
        value = named[""] if [*named] == [""] else named
        field, slash, key = name.partition("/")
        if slash:
            fields.setdefault(field, {})[key] = value
        else:
            fields[field] = value
    if "scheduled" in header:
        fields["hyperparams_states"] = dict.fromkeys(header["scheduled"], ())
    return make_node(kind, moments, fields)


def _convert(stored: Stored, format: Any, signed: bool, like: Any) -> Stored:
    """Return a moment in another format, in one that a file can have.

    Args:
      stored: the moment.
      format: the other format; None leaves it as it is.
      signed: whether it is a first moment.
      like: a tree of arrays of the shapes of the parameters, or None.
    """
    known = type(stored.format) in _READERS.values()
    if known and format is None:
        return stored
    try:
        moment = decode(stored, like)
    except ValueError:  # of unknown shape
        return stored
    if format is None:
        return Stored(moment, Dense())
    return store(format, jax.tree.map(numerics.widen, moment), signed)


def _join(*names: Any) -> str:
    """Return the name of a tensor in the file."""
    return "/".join(str(name) for name in names if name != "")


def _import_safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}: pip install safetensors brings it"
        ) from None
    return safetensors
