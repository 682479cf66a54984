"""Many small leaves in a few flat buffers.

On CPU it costs 3 to 6 us to pass an array into a jitted step and out of it. With a
thousand leaves, the state of Adam is two thousand arrays; `packed` makes a hundred of
them. Gradients and parameters are still passed leaf by leaf.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_leaves_with_path

from adam_jax import numerics, placement
from adam_jax.checks import check_inexact, fit_params, resolve_mask
from adam_jax.hyperparams import shown
from adam_jax.moments.formats import is_elementwise
from adam_jax.moments.trees import as_leaves
from adam_jax.recipes.notes import note_parts
from adam_jax.stages.flow import (
    expect_optimizer,
    expect_state,
    expect_updates,
    expect_whole,
)
from adam_jax.stages.updates import Mask
from adam_jax.states.buffers import (
    Group,
    Packed,
    PackedState,
    check_fits,
    make_places,
    pack,
    shard_like,
    split,
    wrap,
)
from adam_jax.states.reading import find_nodes, find_stored
from adam_jax.wrappers.elementwise import expect_elementwise

_MAX_SIZE = 2**12  # of a leaf, on CPU
# Measured: concatenations of more leaves take longer to compile (1,000 x 64: 3 s at 16
# leaves and 7 s at 128), and buffers of more elements do not fit into the cache.
_LEAVES = 16
_ELEMENTS = 2**15

_TRIED = 8  # shapes, more or less


def packed(
    tx: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    *,
    mask: Mask = None,
    max_size: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Run an elementwise optimizer on flat buffers, each made of many small leaves.

    The operations are those of `tx`. Without jit, every bit is the same. (In compiled
    code XLA may fuse a product and a sum in one program but not in the other; the last
    bit can then differ.) A bfloat16 moment is rounded with other random bits, and is
    still unbiased. Leaves of different dtypes never share a buffer. A leaf stays alone
    if it is large, if it is a single element, or if `tx` does not store its moments
    element by element, as with codes that share an exponent, or means.

    It is for CPU. On TPU and GPU leaves stay alone by default: there XLA copies them
    into their buffers and out again, which moves twice the bytes of a step.

    Only `max_size`, the shapes and the dtypes of leaves decide which of them share a
    buffer, so a checkpoint fits a run on another mesh. (On another platform, give
    `max_size`.) Sharded leaves that share a buffer are gathered in every step: use
    `packed` on one device, or leave sharded leaves out with `optax.masked`.

    A step of 1,000 leaves of 64 elements is 1.7 times as fast as that of `optax.adamw`;
    with leaves of 4,096 elements there is no gain. (Two CPU cores, jitted with
    `apply_updates`, donated.) `fused.step(packed(tx))` steps such leaves in one pass.

    The state is a `PackedState`. `unpack` turns it into the ordinary state, and
    `load_moments` returns ordinary trees.

    Args:
      tx: any optimizer that treats all elements alike, wherever they are: all of
        `OPTIMIZERS`, but not Adafactor or per-leaf clipping. If a mask is given, pass a
        function that makes the optimizer; it is called as `tx(mask=...)`.
      mask: which parameters decay, as in `adamw`. A mask inside `tx` is refused: it
        would see buffers instead of leaves.
      max_size: leaves with more elements stay alone. None means 4,096 where JAX's
        default backend is the CPU, and 0 elsewhere.

    Raises:
      ValueError: if tx contains a mask, labels or another `packed`, if tx is not a
        function although a mask is given, or if max_size is out of range; at init, if
        tx does not treat all elements alike.
      AssertionError: if gradients do not fit the state; the message names the leaves.
      TypeError: if gradients that share a buffer differ in dtype.

    Example: 100 leaves, whose state would be 204 arrays.

      >>> import adam_jax
      >>> params = {f"layer{i}": jnp.ones(64) for i in range(100)}
      >>> state = packed(adam_jax.adamw(1e-3)).init(params)
      >>> print(len(jax.tree.leaves(state)))
      18

    With a mask, `tx` is a function that takes the mask:

      >>> matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
      >>> tx = packed(functools.partial(adam_jax.adamw, 1e-3), mask=matrices)
    """
    if max_size is not None and (not isinstance(max_size, int) or max_size < 0):
        raise ValueError(f"max_size must be an integer >= 0, got {max_size!r}.")
    if isinstance(tx, optax.GradientTransformation):
        takes = mask is None
    else:
        takes = mask is not None and callable(tx)
    if not takes:
        raise ValueError(
            "packed(tx) takes an optimizer; with a mask it takes a function that "
            f"makes one, and calls it with the mask of its buffers. Got {shown(tx)}: "
            "write packed(adamw(1e-3)), or packed(functools.partial(adamw, 1e-3), "
            "mask=mask)."
        )

    def limit() -> int:
        default = _MAX_SIZE if jax.default_backend() == "cpu" else 0
        return default if max_size is None else max_size

    def inner(marks: Any) -> Any:  # an optimizer of Packed trees
        made = tx if isinstance(tx, optax.GradientTransformation) else tx(mask=marks)
        expect_optimizer(made, "packed")
        return optax.with_extra_args_support(made)

    def marks_of(tree):  # the value of the mask for each leaf
        if mask is None:
            return [True] * len(jax.tree.leaves(tree))
        given = jax.tree.broadcast(resolve_mask(mask, tree), tree)
        return [bool(m) for m in jax.tree.leaves(given)]

    def inner_of(groups, tree):
        """Return the optimizer for these buffers."""
        marks = marks_of(tree)
        return inner(wrap(groups, [marks[group[0][0]] for group in groups]))

    tried: set[Any] = set()

    def try_out(groups, params):
        """Refuse an optimizer to which it matters which leaves share a buffer."""
        leaves, found = jax.tree.leaves(params), {}
        for group in groups:
            if len(group) > 1:
                shapes = [shape for _, shape in group if math.prod(shape)]
                dtype = numerics.dtype_of(leaves[group[0][0]])
                buffer = (sum(map(math.prod, shapes)),)
                found.setdefault(dtype, set()).update([*shapes, buffer])
        for dtype, shapes in found.items():
            shapes = sorted(shapes, key=lambda shape: (math.prod(shape), shape))
            some = tuple(shapes[:: -(-len(shapes) // _TRIED)] + shapes[-1:])
            if (dtype, some) not in tried:
                tx = inner([True] * len(some))
                with placement.in_pieces(None):
                    expect_elementwise(tx, some, dtype, "packed")
                tried.add((dtype, some))

    def init_fn(params):
        check_inexact(params, "params")
        places = make_places(params)
        if not jax.tree.leaves(params):  # optax.tree.map_params looks for its own tree
            return PackedState(inner(params).init(params), places)
        if mask is None:
            _expect_no_trees(jax.eval_shape(inner(None).init, params))

        def start(groups, params):
            (tree,) = pack(groups, params)
            with placement.in_pieces(_find_cuts(groups, params)):
                return inner_of(groups, params).init(tree)

        def by_element(groups):
            return _by_element(
                groups, jax.eval_shape(lambda x: start(groups, x), params)
            )

        # The shape decides which elements share an exponent or a mean. A leaf may be
        # packed if its moments are stored by element both in its own shape and in the
        # buffer's.
        whole = [((i, np.shape(x)),) for i, x in enumerate(jax.tree.leaves(params))]
        joinable = [
            together and not cut
            for together, cut in zip(by_element(whole), _cuts(params), strict=True)
        ]
        groups = _group(params, marks_of(params), limit(), joinable)
        parted = [
            part
            for group, together in zip(groups, by_element(groups), strict=True)
            for part in ([group] if together else [(leaf,) for leaf in group])
        ]
        try_out(parted, params)
        return PackedState(start(sorted(parted), params), places)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "packed")
        expect_state(state, PackedState, "packed")
        before = state.inner_state
        if not jax.tree.leaves(updates):
            out, after = inner(updates).update(updates, before, params, **extra_args)
            return out, PackedState(after, state.places)
        check_inexact(updates, "grads")
        like = updates
        if params is not None:
            like = params = fit_params(params, updates)
        trees = find_nodes(before, Packed)
        joinable = [not cut for cut in _cuts(like)]
        anew = functools.partial(_group, like, marks_of(like), limit(), joinable)
        groups = trees[0].groups() if trees else anew()
        check_fits(state, groups, updates)
        given = [updates] if params is None else [updates, params]
        buffers, *rest = pack(groups, *given)
        with placement.in_pieces(_find_cuts(groups, like)):
            emitted, after = inner_of(groups, like).update(
                buffers, before, *rest, **extra_args
            )
        expect_whole(emitted, "packed")
        updates = _unpack_updates(emitted, updates, params, buffers, *rest)
        return updates, PackedState(after, state.places)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _cuts(tree: Any) -> list[Any]:
    """Return how each leaf of a tree is cut in a shard_map."""
    return [placement.cut_at(path) for path, _ in tree_leaves_with_path(tree)]


def _find_cuts(groups: list[Group], tree: Any) -> dict[Any, Any] | None:
    """Return how each buffer is cut, by its path; None if that is not known.

    Raises:
      ValueError: if leaves that are cut share a buffer.
    """
    cuts = _cuts(tree)
    if None in cuts:
        return None
    if any(cuts[number] for group in groups if len(group) > 1 for number, _ in group):
        raise ValueError(
            "leaves that in_shard_map() cuts share a buffer of packed(): make the "
            "state with the optimizer's init() inside of the shard_map."
        )
    numbered = tree_leaves_with_path(wrap(groups, range(len(groups))))
    return {path: cuts[groups[i][0][0]] for path, i in numbered}


def _group(
    params: Any, marks: list[bool], max_size: int, joinable: list[bool]
) -> list[Group]:
    """Decide which leaves share a buffer: small ones of one dtype, marked alike.

    Args:
      params: a pytree of arrays.
      marks: the value of the mask for each leaf.
      max_size: leaves with more elements stay alone.
      joinable: for each leaf, whether it is whole, and its moments, if it has any, are
        stored by element.
    """
    groups: list[list[Any]] = []
    open_groups: dict[Any, tuple[list[Any], int]] = {}
    for i, leaf in enumerate(jax.tree.leaves(params)):
        dtype, shape, size = numerics.dtype_of(leaf), np.shape(leaf), np.size(leaf)
        inexact = jnp.issubdtype(dtype, jnp.inexact)
        # XLA divides a single element by a scalar, but multiplies several elements by
        # the reciprocal. In a buffer, a single element would differ in its last bit.
        if size == 1 or size > max_size or not inexact or not joinable[i]:
            groups.append([(i, shape)])
            continue
        group, elements = open_groups.get((dtype, marks[i]), ([], 0))
        if not group or len(group) == _LEAVES or elements + size > _ELEMENTS:
            group, elements = [], 0
            groups.append(group)
        group.append((i, shape))
        open_groups[dtype, marks[i]] = group, elements + size
    return [tuple(group) for group in groups]


def _by_element(groups: list[Group], state: Any) -> list[bool]:
    """Return, for each group, whether a state stores its moments by element."""
    stored = find_stored(state)
    leaves = [as_leaves(one, jax.tree.structure(one.values)) for one in stored]
    found = []
    for i, group in enumerate(groups):
        shape = (sum(math.prod(shape) for _, shape in group),)
        shape = group[0][1] if len(group) == 1 else shape
        found.append(all(is_elementwise(moment[i], shape) for moment in leaves))
    return found


def _unpack_updates(
    emitted: Packed,
    updates: Any,
    params: Any,
    of_grads: Packed,
    of_params: Packed | None = None,
) -> Any:
    """Unpack the updates emitted for buffers into a tree like `updates`."""
    grads, structure = jax.tree.flatten(updates)
    given = jax.tree.leaves(params) if of_params else [None] * len(grads)
    leaves = [None] * len(grads)
    nothing = [None] * len(emitted.buffers)
    for group, buffer, grad_buffer, param_buffer in zip(
        emitted.groups(),
        emitted.in_order(),
        of_grads.in_order(),
        of_params.in_order() if of_params else nothing,
        strict=True,
    ):
        own = [grads[number] for number, _ in group]
        parts = split(group, buffer)
        if len(group) > 1:
            parts = [shard_like(x, like) for x, like in zip(parts, own, strict=True)]
            params_here = [given[number] for number, _ in group]
            note_parts(buffer, parts, own, params_here, (grad_buffer, param_buffer))
        for (number, _), part in zip(group, parts, strict=True):
            leaves[number] = part
    return structure.unflatten(leaves)


def _expect_no_trees(state: Any) -> None:
    if find_nodes(state, optax.MaskedState | optax.MultiTransformState | PackedState):
        raise ValueError(
            "packed() was given an optimizer with a mask, labels or another packed() "
            "inside, which would see buffers instead of leaves. For the mask of a "
            "weight decay write packed(functools.partial(adamw, 1e-3), mask=mask); "
            "otherwise put packed() inside: optax.masked(packed(tx), mask)."
        )
