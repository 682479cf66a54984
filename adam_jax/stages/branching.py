"""Stages that run others beside each other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import Hyperparam, at, check_number, shown
from adam_jax.stages.division import emit
from adam_jax.stages.flow import Moments, expect_moments, expect_state, widen
from adam_jax.stages.gathering import MomentsState


class BranchesState(NamedTuple):
    """State of `add_branches`.

    Attributes:
      steps: int32 scalar, the steps taken, at which the factors are evaluated.
      inner: a tuple with the state of each branch.
    """

    steps: ArrayLike
    inner: tuple[Any, ...]


def add_branches(
    *branches: tuple[Hyperparam | None, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Give several stages the same input, and add what they emit, times a factor each.

    Branches emit either updates or `Moments`, all the same. Of `Moments`, mu and its
    weight are added; nu is that of the one branch that has a second moment. If a mu was
    corrected, so is the sum.

    If a branch has a second moment of gradients, all see these bounded, as
    `scale_by_moments` bounds them: so the sum stays small beside the root of nu.

    Args:
      *branches: pairs (factor, stage). A factor is a number, a 0-d array or a schedule;
        None adds nothing to mu, for a branch that only keeps a nu.

    Raises:
      ValueError: if all factors are None, or one is not finite; at the first trace, if
        several branches have a second moment.
      TypeError: if a branch is not such a pair; at the first trace, if some branches
        emit updates and some `Moments`, or if the state is another transformation's.

    Example: a fast average, plus 5 times a slow one.

      >>> from adam_jax import precondition, scale_by_moments
      >>> tx = optax.chain(
      ...     add_branches(
      ...         (1.0, scale_by_moments(0.9, None)),
      ...         (5.0, scale_by_moments(0.99, None)),
      ...     ),
      ...     precondition(),
      ... )
      >>> updates, _ = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.3f}")
      0.150

    Reference: Lucas et al. 2019 (AggMo), equation 2.
    """
    for branch in branches:
        # A transformation is a tuple, too.
        if type(branch) is not tuple or not hasattr(branch[-1], "update"):
            raise TypeError(
                "add_branches() takes pairs (factor, stage), as in "
                f"add_branches((1.0, bias_correct())), got {shown(branch)}."
            )
    factors = [f if f is None else check_number("factor", f) for f, _ in branches]
    stages = [stage for _, stage in branches]
    if all(factor is None for factor in factors):
        raise ValueError("add_branches() needs a branch whose factor is not None.")

    def init_fn(params):
        inner = tuple(stage.init(params) for stage in stages)
        return BranchesState(jnp.zeros([], jnp.int32), inner)

    def update_fn(updates, state, params=None):
        expect_state(state, BranchesState, "add_branches")
        if len(state.inner) != len(stages):
            raise TypeError(
                f"add_branches() of {len(stages)} branches was given a state of "
                f"{len(state.inner)}: start from tx.init(params)."
            )
        given: Any = updates
        received = given.grads if isinstance(given, Moments) else given
        if given is received and _has_nu(state.inner):
            updates = jax.tree.map(
                lambda x, wide: numerics.bound(wide).astype(numerics.dtype_of(x)),
                received,
                widen(received),
            )
        pairs = [
            stage.update(updates, one, params)
            for stage, one in zip(stages, state.inner, strict=True)
        ]
        emitted = [out for out, _ in pairs]
        inner = tuple(one for _, one in pairs)

        def add_leaf(*leaves):
            real = numerics.real_dtype(leaves[0].dtype)
            chosen = zip([f for f in factors if f is not None], leaves, strict=True)
            return sum(at(f, state.steps, real) * x for f, x in chosen)

        def add(trees):
            return jax.tree.map(add_leaf, *trees)

        if any(isinstance(out, Moments) for out in emitted):
            total: Any = _add_moments(emitted, factors, add, received)
        else:
            check_inexact(received, "grads")
            chosen = zip(emitted, factors, strict=True)
            wide = [widen(out) for out, factor in chosen if factor is not None]
            total = emit(add(wide), received, params)
        steps = optax.safe_increment(state.steps)
        return total, BranchesState(steps, inner)

    return optax.GradientTransformation(init_fn, update_fn)


def _has_nu(state: Any) -> bool:
    """Return whether a stage with this state has a second moment."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, MomentsState))
    return any(isinstance(x, MomentsState) and x.nu is not None for x in nodes)


def _add_moments(
    moments: list[Any], factors: list[Any], add: Any, grads: Any
) -> Moments:
    """Return the `Moments` with the sum of mu, and with the only nu."""
    if not all(isinstance(m, Moments) for m in moments):
        raise TypeError(
            "some branches of add_branches() emit Moments, and some updates: end the "
            "former with precondition(), or put scale_by_moments() into the latter."
        )
    with_nu = [m for m in moments if m.nu is not None]
    if len(with_nu) > 1:
        raise ValueError(
            f"{len(with_nu)} branches of add_branches() have a second moment: give "
            "scale_by_moments() a b2 in one of them only, and None in the others."
        )
    base = with_nu[0] if with_nu else moments[0]
    chosen = zip(moments, factors, strict=True)
    added = [m for m, factor in chosen if factor is not None]
    corrected = base.corrected - {"mu"}
    if any("mu" in m.corrected for m in added):
        corrected |= {"mu"}
    return base._replace(
        grads=grads,
        mu=add([m.mu for m in added]),
        mu_weight=add([m.mu_weight for m in added]),
        has_mu=any(m.has_mu for m in added),
        plain=False,
        one_rate=False,
        corrected=corrected,
    )


def take_gradients() -> optax.GradientTransformation:
    """Emit the gradients that came with `Moments`, as updates.

    Finite ones are bounded as in `scale_by_moments`, so that an average of them stays
    small beside the root of the second moment.

    Raises:
      TypeError: at the first trace, for updates in place of `Moments`.

    Example: Adam's first moment, plus twice the gradient.

      >>> from adam_jax import add_branches, precondition, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(0.9, None),
      ...     add_branches((1.0, precondition()), (2.0, take_gradients())),
      ... )
      >>> updates, _ = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.1f}")
      2.1
    """

    def take(moments: Any, params=None) -> Any:
        m = expect_moments(moments, "take_gradients")
        bounded = jax.tree.map(numerics.bound, widen(m.grads, m.mu))
        return emit(bounded, m.grads, params)

    return optax.stateless(take)
