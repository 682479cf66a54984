"""Conversion of the moments of a state to other formats."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax import numerics, placement
from adam_jax.coordinates.changing import WithinState
from adam_jax.moments.formats import Format, Stored, is_elementwise
from adam_jax.moments.maxima import AxisMaxima
from adam_jax.moments.sharing import Factored, MeanOver
from adam_jax.moments.storage import Storage, as_format
from adam_jax.moments.trees import decode, store
from adam_jax.stages.gathering import MomentsState
from adam_jax.stages.holding import NuTraceState, TraceState
from adam_jax.states.buffers import Packed, PackedState, pack, part
from adam_jax.states.reading import cut_to, expect_shapes, find_nodes, is_of_numbers

_SHARED = (Factored, MeanOver, AxisMaxima)
_HELD = MomentsState | TraceState | NuTraceState


def convert_state(
    state: Any,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
    params: Any = None,
) -> Any:
    """Convert the moments of `state` to other formats, in which a run can continue.

    Values are rounded to nearest; counts and weights do not change. A packed state
    stays packed, except for leaves that the new format does not store element by
    element.

    An optimizer that keeps second moments in a format of its own, as adafactor does,
    refuses the converted ones. If it keeps others beside them, as normuon does, its
    state is not converted. `adopt_state` goes on from both: it stores each moment as
    the new optimizer does. (Those of a number a leaf, as in stable_spam, stay as they
    are if you pass params.)

    Args:
      state: an optimizer state, or anything that holds one, such as a TrainState.
      mu_dtype: how to store first moments and traces: a dtype, a `Format` or the name
        of one; None leaves them as they are.
      nu_dtype: the same for second moments.
      params: the parameters; needed only if the moments are in a format that does not
        know their shapes, such as `mean_over`.

    Returns:
      A state that an optimizer with this mu_dtype and nu_dtype can continue from.

    Raises:
      ValueError: for an unknown format, a state without adam_jax's moments, or params
        that are missing or do not fit; for a nu_dtype, if elements share some of the
        second moments and others not.
      TypeError: for complex moments in a real format.

    Example:

      >>> import adam_jax, jax.numpy as jnp
      >>> params = jnp.ones((64, 64))
      >>> state = adam_jax.adam(1e-3).init(params)
      >>> small = convert_state(state, mu_dtype="8bit", nu_dtype="8bit")
      >>> nbytes = sum(x.nbytes for x in jax.tree.leaves(small))
      >>> print(f"{nbytes / params.size:.3f} bytes a parameter")
      2.068 bytes a parameter
    """
    mu_format = None if mu_dtype is None else as_format("mu_dtype", mu_dtype)
    nu_format = None if nu_dtype is None else as_format("nu_dtype", nu_dtype)
    found = False
    if nu_format is not None:
        _expect_one_kind(state)

    def convert(values, format, to, signed, params):
        if values is None or (to is None and params is None):
            return values, format
        if isinstance(values, Packed) and params is not None:
            (like,) = pack(values.groups(), params)
        else:
            like = cut_to(values, params)
        moment = decode(Stored(values, format), like)
        if like is not None:
            expect_shapes(moment, like)
        if to is None:
            return values, format
        moment = jax.tree.map(numerics.widen, moment)
        stored = store(to, moment, signed)
        for old in jax.tree.leaves(values)[:1]:
            stored = placement.beside(stored, old)
        for x, y in zip(
            jax.tree.leaves(moment), jax.tree.leaves(stored.values), strict=True
        ):
            if jnp.iscomplexobj(x) and not jnp.iscomplexobj(y):
                raise TypeError(f"a {x.dtype} moment cannot be stored as {y.dtype}.")
        return stored

    def stays(group):
        """Return whether a group can stay in one buffer in the new formats."""
        shapes = [shape for _, shape in group]
        shapes.append((sum(map(math.prod, shapes)),))
        return len(group) == 1 or all(
            _is_by_element(format, shape, signed)
            for format, signed in ((mu_format, True), (nu_format, False))
            for shape in shapes
        )

    def convert_node(node, params):
        nonlocal found
        found = found or isinstance(node, _HELD)
        if isinstance(node, PackedState):
            inner = convert_all(
                part(node, stays).inner_state, cut_to(node.places, params)
            )
            return node._replace(inner_state=inner)
        if isinstance(node, WithinState):  # where shapes may be others
            return node._replace(inner_state=convert_all(node.inner_state, None))
        if isinstance(node, MomentsState):
            packed = any(isinstance(x, Packed) for x in (node.mu, node.nu))
            if not packed and is_of_numbers(node, params):
                return node
            mu, mu_kept = convert(node.mu, node.mu_format, mu_format, True, params)
            nu, nu_kept = convert(node.nu, node.nu_format, nu_format, False, params)
            return node._replace(mu=mu, mu_format=mu_kept, nu=nu, nu_format=nu_kept)
        if isinstance(node, TraceState):
            trace = convert(node.trace, node.trace_format, mu_format, True, params)
            return TraceState(node.count, *trace)
        if isinstance(node, NuTraceState):
            values, format = node.nu_trace, node.nu_trace_format
            trace = convert(values, format, nu_format, False, params)
            return NuTraceState(node.count, *trace)
        return node

    def convert_all(state, params):
        kinds = _HELD | PackedState | WithinState
        return jax.tree.map(
            lambda node: convert_node(node, params),
            state,
            is_leaf=lambda node: isinstance(node, kinds),
        )

    state = convert_all(state, params)
    if not found:
        raise ValueError(
            "convert_state() found no moments: pass the state of an adam_jax "
            "optimizer, or anything that holds one."
        )
    return state


def _expect_one_kind(state: Any) -> None:
    """Refuse second moments that no one nu_dtype makes: of elements and shared ones."""
    nodes = [x for x in find_nodes(state, MomentsState) if x.nu is not None]
    shared = [x for x in nodes if isinstance(x.nu_format, _SHARED)]
    if shared and len(shared) < len(nodes):
        raise ValueError(
            "convert_state() cannot store all second moments in one format: elements "
            f"share some ({type(shared[0].nu_format).__name__}), as in normuon(), and "
            "others not. Go on from adopt_state(tx, state, params).state, which stores "
            "each as the new optimizer does."
        )


def _is_by_element(format: Format | None, shape: tuple[int, ...], signed: bool) -> bool:
    """Return whether a format stores a leaf of this shape element by element."""
    if format is None:
        return True
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return is_elementwise(jax.eval_shape(lambda x: format.init(x, signed), leaf), shape)
