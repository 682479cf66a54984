"""From `Moments` to updates: the first moment divided by the root of the second."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    exact,
)
from adam_jax.recipes.notes import note_division
from adam_jax.stages.flow import Moments, cast_like, expect_moments, expect_second
from adam_jax.tracing import map_leaves


def precondition(
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
) -> optax.GradientTransformation:
    """Divide the first moment by the root of the second: `Moments` become updates.

        updates = mu / (sqrt(nu + eps_root) + eps)

    Where the denominator is 0, so is the update; its derivative is finite everywhere.
    Without a second moment the updates are mu.

    Args:
      eps: added outside the root, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.

    Example: the first corrected step has size 1 whatever the gradient's scale.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(scale_by_moments(), bias_correct(), precondition())
      >>> updates, _ = tx.update(jnp.float32(-7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -1.000000

    Reference: Kingma & Ba 2014, Algorithm 1, line 11.
    """
    eps = check_non_negative("eps", eps)
    eps_root = check_non_negative("eps_root", eps_root)

    def divide(moments: Any, params=None):
        m = expect_moments(moments, "precondition")
        return emit(divide_moments(m, eps, eps_root), m.grads, params)

    return optax.stateless(divide)


def divide_moments(m: Moments, eps: Any, eps_root: Any) -> Any:
    """Return mu / (sqrt(nu + eps_root) + eps), or mu if there is no nu, uncast.

    Args:
      m: the moments.
      eps: a float, a 0-d array or a schedule.
      eps_root: the same.
    """
    if m.nu is None:
        return m.mu
    past = m.count - 1

    def divide_leaf(mu, nu):
        inside = nu + at(eps_root, past, nu.dtype)
        if isinstance(eps, float) and eps == 0:  # one rounding fewer
            return mu * numerics.rsqrt_or_zero(inside).astype(mu.dtype)
        root = numerics.sqrt(inside) + at(eps, past, nu.dtype)
        if isinstance(eps, float) and eps >= jnp.finfo(nu.dtype).tiny:
            return numerics.divide(mu, root)  # which is not 0
        return numerics.divide_or_zero(mu, root)

    updates = map_leaves(divide_leaf, m.mu, m.nu)
    note_division(updates, m.mu, m.nu, past, eps, eps_root)
    return updates


def atan2_precondition(
    a: Hyperparam = exact(4 / math.pi), b: Hyperparam = exact(1.0)
) -> optax.GradientTransformation:
    """Divide as `precondition` does, but by atan2, which needs no eps.

        updates = a * atan2(mu, b * sqrt(nu))

    Updates are at most a * pi / 2, and where mu is 0, they are 0. A complex mu keeps
    its direction: its size is mapped. Where nu is 0 and mu is not, the squares were too
    small for nu's dtype (in float32, those of gradients below 3e-18 at b2 = 0.999): mu
    is then taken to be as large as the root, so updates have the size a * atan2(1, b).

    Args:
      a: the factor, >= 0. By default an update for mu = sqrt(nu) has size 1.
      b: the scale of mu / sqrt(nu) below which atan2 is nearly linear, >= 0.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if there is
        no second moment.

    Example: the size of the first step depends on no eps, however small gradients are.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(scale_by_moments(), bias_correct(), atan2_precondition())
      >>> updates, _ = tx.update(jnp.float32(-1e-12), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -1.000000

    Reference: Everett et al. 2024 (arXiv:2407.05872): Adam-atan2.
    """
    a, b = check_non_negative("a", a), check_non_negative("b", b)

    def divide(moments: Any, params=None):
        m = expect_moments(moments, "atan2_precondition")
        expect_second(m, "atan2_precondition")
        past = m.count - 1

        def divide_leaf(mu, nu):
            # jnp.arctan2 has a derivative of 0/0 at the origin.
            scale = jnp.asarray(at(b, past, nu.dtype), nu.dtype)
            root = scale * numerics.sqrt(nu)
            size = jnp.abs(mu) if jnp.iscomplexobj(mu) else mu
            angle = jnp.arctan(numerics.divide_or_zero(size, root))
            steepest = jnp.where(nu == 0, jnp.arctan2(1, scale), math.pi / 2)
            angle = jnp.where(root == 0, jnp.sign(size) * steepest, angle)
            if jnp.iscomplexobj(mu):
                angle = angle.astype(mu.dtype) * numerics.divide_or_zero(mu, size)
            return at(a, past, mu.dtype) * angle

        return emit(jax.tree.map(divide_leaf, m.mu, m.nu), m.grads, params)

    return optax.stateless(divide)


def rectified_precondition(
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    threshold: Hyperparam = exact(5.0),
    *,
    silent: bool = False,
) -> optax.GradientTransformation:
    """Divide as `precondition` does, once the second moment averages enough gradients.

        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 t b2^t / (1 - b2^t)
        r = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))
        updates = r * mu / (sqrt(nu + eps_root) + eps)   if rho >= threshold, else mu
                                                         (or 0, if silent)

    b2 is the decay rate that comes with the second moment.

    Args:
      eps: as in `precondition`.
      eps_root: as in `precondition`.
      threshold: the least rho at which nu is used.
      silent: whether to emit 0 before that, instead of mu.

    Raises:
      ValueError: at the first trace, if there is no second moment, or if it is not
        an average, or behind `correct_step_size`.

    Example: at b2 = 0.9999, rho is 4.9996 at the fifth step: still momentum.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(b2=0.9999), bias_correct(), rectified_precondition()
      ... )
      >>> state, sizes = tx.init(jnp.float32(0)), []
      >>> for _ in range(6):
      ...     updates, state = tx.update(jnp.float32(3), state)
      ...     sizes.append(f"{updates:.4f}")
      >>> print(*sizes[4:])
      3.0000 0.0082

    Reference: Liu et al. 2020 (RAdam), Algorithm 2, where the threshold is 4.

    Differs from Optax in the last digits of rho, which matter for b2 near 1: see
    `numerics.sma_length_above`.
    """
    eps = check_non_negative("eps", eps)
    eps_root = check_non_negative("eps_root", eps_root)
    threshold = check_non_negative("threshold", threshold)

    def divide(moments: Any, params=None):
        m = expect_moments(moments, "rectified_precondition")
        expect_second(m, "rectified_precondition")
        if "step size" in m.corrected:
            raise ValueError(
                "rectified_precondition() starts with steps of mu alone, in which "
                "correct_step_size() leaves the correction of nu: use bias_correct()."
            )
        dtype, decay = m.nu_weight.dtype, m.nu_decay
        if decay is None:
            raise ValueError(
                "rectified_precondition() needs a second moment that is an average: "
                "give scale_by_moments() a b2."
            )

        least = at(threshold, m.count - 1, dtype)
        trusted, r = _rectify(decay, m.count, least, dtype)
        updates = jax.tree.map(
            lambda divided, mu: jnp.where(
                trusted, r.astype(mu.dtype) * divided, 0 if silent else mu
            ),
            divide_moments(m, eps, eps_root),
            m.mu,
        )
        return emit(updates, m.grads, params)

    return optax.stateless(divide)


def rectification(
    b2: Hyperparam, threshold: Hyperparam = exact(5.0), *, silent: bool = False
) -> Callable[[Any], Any]:
    """Return the schedule of r, by which `rectified_precondition` multiplies.

    It is 1 where rho is below the threshold (or 0, if silent).

    Args:
      b2: the decay rate of the second moment, in [0, 1).
      threshold: as in `rectified_precondition`.
      silent: as in `rectified_precondition`.

    Example:

      >>> print(f"{rectification(0.999)(99):.4f}")
      0.2153

    Reference: Liu et al. 2020 (RAdam), Algorithm 2.
    """
    b2 = check_decay("b2", b2)
    threshold = check_non_negative("threshold", threshold)

    def size(count):
        dtype = jnp.dtype(jnp.result_type(float))
        least = at(threshold, count, dtype)
        decay = at(b2, count, dtype)
        trusted, r = _rectify(decay, optax.safe_increment(count), least, dtype)
        return jnp.where(trusted, r, 0 if silent else 1)

    return size


def _rectify(decay: Any, count: Any, least: Any, dtype: Any) -> tuple[Any, Any]:
    """Return whether rho, at this step, has come to `least`, and r."""

    def rho_above(level):
        return numerics.sma_length_above(decay, count, level, dtype)

    rho_inf = 2 / (1 - decay) - 1
    # Below 4 there is no r, whatever the threshold.
    trusted = (rho_above(4) > 0) & (rho_above(least) >= 0)

    def sure(x):  # where there is no r, its derivative must not be NaN
        return jnp.where(trusted, x, 1)

    square = sure(rho_above(4)) / sure(rho_inf - 4)
    square *= sure(rho_above(2)) / sure(rho_inf - 2)
    square *= sure(rho_inf) / sure(rho_above(0))
    return trusted, jnp.sqrt(square)


def floor_nu(eps: Hyperparam) -> optax.GradientTransformation:
    """Raise the second moment to at least eps^2, so that its root is at least eps.

        nu <- max(nu, eps^2)

    With `precondition(eps=0)` behind it, the divisor is max(sqrt(nu), eps), where
    `precondition(eps)` alone divides by sqrt(nu) + eps.

    Args:
      eps: >= 0, in units of the gradient.

    Raises:
      ValueError: if eps is out of range; at the first trace, if there is no second
        moment.

    Example:

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(None, 0.5), floor_nu(2.0), precondition(eps=0.0)
      ... )
      >>> updates, _ = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
      >>> print(updates)
      0.5

    Reference: Taniguchi et al. 2024 (ADOPT), Algorithm 2.
    """
    eps = check_non_negative("eps", eps)

    def raise_nu(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "floor_nu")
        expect_second(m, "floor_nu")

        def raise_leaf(nu):
            least = at(eps, m.count - 1, nu.dtype)
            return jnp.maximum(nu, least * least)

        return m._replace(nu=jax.tree.map(raise_leaf, m.nu), plain=False)

    return optax.stateless(raise_nu)


def emit(updates: Any, received: Any, params: Any) -> Any:
    """Return updates in the dtype that a stage emits.

    Args:
      updates: the updates, float32 or wider.
      received: the input of the stage, a pytree with the dtypes to emit.
      params: the params given to `update`; if not None, `scale_by_lr` or
        `apply_updates` will set the dtype, and updates stay as they are.
    """
    return cast_like(updates, received) if params is None else updates
