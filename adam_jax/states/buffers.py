"""Trees whose small leaves lie in a few flat buffers.

A packed state is made of plain containers, and the keys of its buffers tell which leaf
lies where. So any library that stores optimizer states can store it, and any reader can
take the leaves out again.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from typing_extensions import TypeAliasType

from adam_jax import numerics
from adam_jax.checks import check_like

Group = TypeAliasType("Group", tuple[tuple[int, tuple[int, ...]], ...])
"""The leaves in one buffer, in order: the number and shape of each."""


class Packed(NamedTuple):
    """A tree like the parameters, whose small leaves lie in buffers.

    Attributes:
      buffers: arrays by the leaves in them. In {"0:3x5 2:7 3": array}, one array of 29
        elements holds leaf 0, of shape (3, 5), and leaves 2 and 3, each of shape (7,).
        A leaf that is alone keeps its shape.
    """

    buffers: dict[str, Any]

    def groups(self) -> list[Group]:
        """Return the leaves of each buffer, in the order of the buffers."""
        return [_parse(key) for key in sorted(self.buffers)]

    def in_order(self) -> list[Any]:
        """Return the buffers, in the order of `groups`."""
        return [self.buffers[key] for key in sorted(self.buffers)]


class Place(NamedTuple):
    """The placeholder of a leaf in `PackedState.places`. It holds no array."""


class PackedState(NamedTuple):
    """State of `packed`.

    Attributes:
      inner_state: the state of the wrapped optimizer, with `Packed` trees in place of
        trees like the parameters.
      places: a pytree like the parameters, with `Place()` for each leaf.
    """

    inner_state: Any
    places: Any


def pack(groups: Sequence[Group], *trees: Any) -> list[Packed]:
    """Put the leaves of each tree into buffers.

    Args:
      groups: which leaves share a buffer.
      *trees: pytrees of arrays (or of `jax.ShapeDtypeStruct`), all of one structure.

    Raises:
      TypeError: if leaves that share a buffer differ in dtype.
    """
    columns = [jax.tree.leaves(tree) for tree in trees]
    buffers = [[] for _ in trees]
    before = []
    for group in groups:
        if len(group) == 1:
            made = [column[group[0][0]] for column in columns]
        else:
            rows = [[column[number] for number, _ in group] for column in columns]
            for tree, row in zip(trees, rows, strict=True):
                _check_one_dtype(tree, group, row)
            made = before = [_concatenate(row, before) for row in rows]
        for own, buffer in zip(buffers, made, strict=True):
            own.append(buffer)
    return [wrap(groups, own) for own in buffers]


def wrap(groups: Sequence[Group], buffers: Sequence[Any]) -> Packed:
    """Return the packed tree of these buffers.

    Args:
      groups: which leaves lie in which buffer.
      buffers: one item for each group, such as an array.
    """
    width = len(
        str(max((number for group in groups for number, _ in group), default=0))
    )
    names = [_name(group, width) for group in groups]
    return Packed(dict(zip(names, buffers, strict=True)))


def make_places(tree: Any) -> Any:
    """Return a tree with `Place()` for each leaf of `tree`."""
    return jax.tree.map(lambda _: Place(), tree)


def _unpack_tree(tree: Packed, structure: Any) -> Any:
    """Return a tree with its leaves back in place; a hole becomes one hole per leaf."""
    leaves = [None] * structure.num_leaves
    for group, buffer in zip(tree.groups(), tree.in_order(), strict=True):
        for (number, _), part in zip(group, split(group, buffer), strict=True):
            leaves[number] = part
    return structure.unflatten(leaves)


def split(group: Group, buffer: Any) -> list[Any]:
    """Return the leaves of a buffer.

    Args:
      group: which leaves it holds.
      buffer: the array, or `optax.MaskedNode()`.
    """
    if len(group) == 1 or isinstance(buffer, optax.MaskedNode):
        return [buffer] * len(group)
    parts, end = [], 0
    for _, shape in group:
        start, end = end, end + math.prod(shape)
        parts.append(lax.slice(buffer, (start,), (end,)).reshape(shape))
    return parts


def part(state: PackedState, stays: Callable[[Group], bool]) -> PackedState:
    """Take leaves out of their buffers.

    Args:
      state: the packed state.
      stays: whether the leaves of a group stay in their buffer.
    """

    def part_tree(tree):
        pairs = []
        for group, buffer in zip(tree.groups(), tree.in_order(), strict=True):
            if stays(group):
                pairs.append((group, buffer))
            else:
                leaves = split(group, buffer)
                pairs += [((leaf,), x) for leaf, x in zip(group, leaves, strict=True)]
        pairs.sort(key=lambda pair: pair[0])
        return wrap(*zip(*pairs, strict=True))

    inner_state = jax.tree.map(
        lambda x: part_tree(x) if isinstance(x, Packed) else x,
        state.inner_state,
        is_leaf=lambda x: isinstance(x, Packed),
    )
    return state._replace(inner_state=inner_state)


def unpack(state: Any) -> Any:
    """Replace every `PackedState` in a state by the state that it stands for.

    Args:
      state: the state of a `packed(tx)`, or anything that holds one.

    Returns:
      The state that `tx` alone would hold there, and can continue from.

    Example:

      >>> import adam_jax
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
      >>> state = adam_jax.packed(adam_jax.adam(1e-3)).init(params)
      >>> print(unpack(state)[0].mu["w"].shape)
      (2, 3)
    """

    def unpack_state(node):
        if not isinstance(node, PackedState):
            return node
        structure = _structure(node.places)
        return jax.tree.map(
            lambda x: _unpack_tree(x, structure) if isinstance(x, Packed) else x,
            node.inner_state,
            is_leaf=lambda x: isinstance(x, Packed),
        )

    return jax.tree.map(
        unpack_state, state, is_leaf=lambda node: isinstance(node, PackedState)
    )


def check_fits(state: PackedState, groups: Sequence[Group], grads: Any) -> None:
    """Assert that gradients have the structure and shapes of the packed leaves.

    Args:
      state: the packed state.
      groups: which leaves lie in which buffer of it.
      grads: the gradients.

    Raises:
      AssertionError: (from chex) if not; the message names the paths that differ.
    """
    shapes = sorted(leaf for group in groups for leaf in group)
    expected = [jax.ShapeDtypeStruct(shape, jnp.float32) for _, shape in shapes]
    reference = _structure(state.places).unflatten(expected)
    check_like(grads, reference, "grads", "the optimizer's packed state")


def _structure(places: Any) -> Any:
    return jax.tree.structure(places, is_leaf=_is_place)


def _is_place(node: Any) -> bool:
    return isinstance(node, Place)


def _name(group: Group, width: int) -> str:
    """Return the key of a group; keys sort like their first leaves."""
    words, before = [], None
    for number, shape in group:
        written = "" if shape == before else ":" + "x".join(map(str, shape))
        words.append(f"{number:0{width}}{written}")
        before = shape
    return " ".join(words)


def _parse(key: str) -> Group:
    leaves, shape = [], ()
    for word in key.split(" "):
        number, written, sizes = word.partition(":")
        if written:
            shape = tuple(int(size) for size in sizes.split("x") if size)
        leaves.append((int(number), shape))
    return tuple(leaves)


def _concatenate(leaves: list[Any], before: list[Any]) -> Any:
    """Return the leaves as one array, filled after the arrays of `before`."""
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        size = sum(math.prod(leaf.shape) for leaf in leaves)
        return jax.ShapeDtypeStruct((size,), leaves[0].dtype)
    leaves = [_gather(leaf) for leaf in leaves]
    # By default, XLA fills all buffers first and later reads them back from memory.
    # With the barrier, it fills each while it works on the one before, in the cache.
    leaves, _ = lax.optimization_barrier((leaves, before))
    return jnp.concatenate([jnp.reshape(leaf, -1) for leaf in leaves])


def _gather(leaf: Any) -> Any:
    """Gather a leaf whose type says that it is sharded."""
    sharding = jax.typeof(leaf).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(leaf, PartitionSpec()) if explicit else leaf


def shard_like(part: Any, like: Any) -> Any:
    """Shard a leaf that came out of a buffer as the type of `like` says.

    Args:
      part: the leaf.
      like: an array of its shape.
    """
    sharding = jax.typeof(like).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(part, sharding) if explicit else part


def _check_one_dtype(tree: Any, group: Group, leaves: list[Any]) -> None:
    expected = numerics.dtype_of(leaves[0])
    for (number, _), leaf in zip(group, leaves, strict=True):
        if numerics.dtype_of(leaf) != expected:
            paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
            name, first = (
                jax.tree_util.keystr(paths[i]) for i in (number, group[0][0])
            )
            raise TypeError(
                f"packed(): {name} is {numerics.dtype_of(leaf)}, but {first}, which "
                f"shares its buffer, is {expected}: cast the gradients to the "
                "parameters' dtypes."
            )
