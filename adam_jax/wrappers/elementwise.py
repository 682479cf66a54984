"""Whether an optimizer treats all elements alike, read from its traced update.

If each update follows from the values at its own place, in the same way for all leaves,
then leaves may share a buffer. So may those of an optimizer that uses numbers computed
from all leaves, such as the global norm. Numbers computed from one leaf, such as its
norm or the mean of a row, would be others in a buffer.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Operations of JAX that compute each element of the result from those at its place.
_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bitcast_convert_type
    cbrt ceil clamp complex conj convert_element_type copy copy_p cos cosh digamma div
    eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma
    log log1p logistic lt max min mul ne neg nextafter not or population_count pow real
    reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    xor""".split()  # noqa: SIM905
)
# Those that move elements, or copy them, and combine none.
_MOVES = frozenset(
    """broadcast_in_dim concatenate device_put dynamic_slice dynamic_update_slice
    expand_dims mesh_cast optimization_barrier pad pbroadcast pvary reshape reshard
    sharding_constraint slice split squeeze stack transpose""".split()  # noqa: SIM905
)


class _Flow(NamedTuple):
    """From which leaves the elements of an array were computed.

    Attributes:
      touched: the leaves whose elements it was computed from, in any way.
      pooled: the leaves of which it combines many elements.
    """

    touched: frozenset[int] = frozenset()
    pooled: frozenset[int] = frozenset()

    def join(self, *others: "_Flow") -> "_Flow":
        """Return what both this one and the others were computed from."""
        return _Flow(*(x.union(*y) for x, *y in zip(self, *others, strict=True)))


def expect_elementwise(
    tx: Any, shapes: Sequence[tuple[int, ...]], dtype: Any, wrapper: str
) -> None:
    """Refuse an optimizer that does not treat all elements alike.

    Its update is traced, not run. An optimizer whose update cannot be traced without
    extra arguments is taken at its word.

    Args:
      tx: the optimizer.
      shapes: the shapes of leaves and buffers to try it with.
      dtype: the dtype of all of them.
      wrapper: the name of the wrapper, for the message.

    Raises:
      ValueError: if the updates of one leaf depend on numbers computed from that leaf,
        but not from the others, or are computed otherwise than those of the others.
    """
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    state = jax.eval_shape(tx.init, leaves)
    try:
        jaxpr = jax.make_jaxpr(tx.update)(leaves, state, leaves).jaxpr
    except TypeError:
        return
    number = len(leaves)
    own = [_Flow(frozenset([i])) for i in range(number)]
    kept = [_Flow()] * len(jax.tree.leaves(state))
    while True:  # until it is known what the state was computed from
        work = [Counter() for _ in leaves]
        made = _follow(jaxpr, [*own, *kept, *own], work)
        joined = [old.join(new) for old, new in zip(kept, made[number:], strict=True)]
        if joined == kept:
            break
        kept = joined
    parts = [flow.pooled for flow in made[:number] if 0 < len(flow.pooled) < number]
    if parts or any(own != work[0] for own in work):
        raise ValueError(
            f"{wrapper}() was given an optimizer that does not treat all elements "
            "alike: updates would change if leaves share a buffer, as with a norm or a "
            "mean for each leaf, or a rule for matrices alone. Leave this to a "
            "transformation outside, as in optax.chain(optax.clip_by_block_rms(1.0), "
            f"{wrapper}(adam(1e-3)))."
        )


def _follow(
    jaxpr: Jaxpr, given: Sequence[_Flow], work: list[Counter[str]]
) -> list[_Flow]:
    """Return the flows of the outputs of a jaxpr.

    Args:
      jaxpr: the traced function.
      given: the flows of its inputs.
      work: for each leaf, how often each operation was applied to its elements alone;
        it is added to.
    """
    flows = dict(zip(jaxpr.invars, given, strict=True))

    def flow_of(atom):
        return _Flow() if isinstance(atom, Literal) else flows.get(atom, _Flow())

    for eqn in jaxpr.eqns:
        operands = [flow_of(atom) for atom in eqn.invars]
        flows |= zip(eqn.outvars, _results(eqn, operands, work), strict=True)
    return [flow_of(atom) for atom in jaxpr.outvars]


def _results(eqn: Any, operands: list[_Flow], work: list[Counter[str]]) -> list[_Flow]:
    """Return the flows of the results of one operation; see `_follow`."""
    name = eqn.primitive.name
    if name == "cond":
        index, *rest = operands
        branches = [_follow(b.jaxpr, rest, work) for b in eqn.params["branches"]]
        return [index.join(*flows) for flows in zip(*branches, strict=True)]
    if name not in ("scan", "while"):
        for inner in eqn.params.values():
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            if isinstance(inner, Jaxpr) and len(inner.invars) == len(operands):
                return _follow(inner, operands, work)
    if name == "optimization_barrier":
        return operands
    touched, pooled = _Flow().join(*operands)
    if name not in _ELEMENTWISE | _MOVES:
        pooled |= touched
    elif name in _ELEMENTWISE and len(touched) == 1 and not pooled:
        work[next(iter(touched))][name] += 1
    return [_Flow(touched, pooled)] * len(eqn.outvars)
