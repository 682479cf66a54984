"""From `Moments` to `Moments`: bias correction, centering, maximum, another power."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.hyperparams import Hyperparam, at, check_non_negative, exact
from adam_jax.moments.accumulators import Accumulator
from adam_jax.moments.formats import Stored, dense
from adam_jax.moments.moment import Moment
from adam_jax.recipes.notes import note_correction
from adam_jax.stages.flow import (
    Moments,
    expect_both,
    expect_moments,
    expect_second,
    expect_state,
)
from adam_jax.tracing import map_leaves


def bias_correct(*, mu: bool = True, nu: bool = True) -> optax.GradientTransformation:
    """Divide each moment by the weight that its average has seen.

        mu_hat = mu / (1 - b1^t)
        nu_hat = nu / (1 - b2^t)

    The weights come with the moments, so they match the decays used, scheduled or not.

    Args:
      mu: whether to correct the first moment.
      nu: whether to correct the second moment.

    Raises:
      ValueError: at the first trace, if a moment has been corrected already.

    Example: the first corrected moment is the gradient itself.

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(scale_by_moments(), bias_correct())
      >>> moments, _ = tx.update(jnp.float32(3), tx.init(jnp.float32(0)))
      >>> print(f"{moments.mu:.5f} {moments.nu:.5f}")
      3.00000 9.00000

    Reference: Kingma & Ba 2014, Algorithm 1, lines 9 and 10, and section 3.
    """
    chosen = frozenset(k for k, on in (("mu", mu), ("nu", nu)) if on)

    def correct(moments: Any, params=None) -> Any:
        del params
        m = _expect_uncorrected(moments, chosen, "bias_correct")
        changes = {}
        if mu:
            changes["mu"] = _scale_down(m.mu, m.mu_weight)
        if nu:
            changes["nu"] = _scale_down(m.nu, m.nu_weight)
        return m._replace(**changes, corrected=m.corrected | chosen)

    return optax.stateless(correct)


def correct_step_size() -> optax.GradientTransformation:
    """Correct the bias in the step size alone, instead of `bias_correct`.

        mu <- mu * sqrt(1 - b2^t) / (1 - b1^t)

    nu stays as it is, so `precondition(eps)` adds eps to the uncorrected root. This eps
    is the paper's "eps-hat", and TensorFlow's.

    Raises:
      ValueError: at the first trace, if a moment has been corrected already.

    Example:

      >>> from adam_jax import precondition, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(), correct_step_size(), precondition(eps=1e-3)
      ... )
      >>> updates, _ = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.4f}")  # 1 / (1 + 1e-3 / sqrt(1 - 0.999))
      0.9693

    Reference: Kingma & Ba 2014, end of section 2.
    """

    def correct(moments: Any, params=None) -> Any:
        del params
        m = _expect_uncorrected(moments, _BOTH, "correct_step_size")
        mu = _scale_down(m.mu, m.mu_weight / jnp.sqrt(m.nu_weight))
        return m._replace(mu=mu, has_mu=False, corrected=_BOTH | {"step size"})

    return optax.stateless(correct)


def center() -> optax.GradientTransformation:
    """Turn the second moment into a variance, which will divide the gradient itself.

        nu <- max(nu - |mu|^2, 0)
        mu <- g

    Raises:
      ValueError: at the first trace, if a moment is missing or is not a plain average,
        if elements share a second moment, or if the averages have seen different
        weights: only one is corrected, or raw averages have different decay rates.

    Example: gradients 1 and 3, averaged at rate 1/2.

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(scale_by_moments(0.5, 0.5), bias_correct(), center())
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 3.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{moments.nu:.4f}")  # (1 + 2 * 9) / 3 - ((1 + 2 * 3) / 3)^2
      0.8889

    Reference: Graves 2013 (arXiv:1308.0850), equations 38 to 40 (centered RMSProp).
    """

    def subtract(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "center")
        expect_both(m, "center")
        _expect_one_weight(m)
        nu = jax.tree.map(
            lambda nu, mu: jnp.maximum(nu - numerics.abs_sq(mu), 0), m.nu, m.mu
        )
        grads = jax.tree.map(lambda g, mu: jnp.asarray(g, mu.dtype), m.grads, m.mu)
        mu = jax.tree.map(numerics.bound, grads)
        return m._replace(mu=mu, nu=nu, has_mu=False, corrected=_BOTH)

    return optax.stateless(subtract)


def temper(
    power: Hyperparam, eps: Hyperparam = exact(0.0)
) -> optax.GradientTransformation:
    """Let `precondition(eps=0)` divide by another power of the second moment.

        nu <- (sqrt(nu) + eps)^(4 * power)

    Then `precondition` divides by (sqrt(nu) + eps)^(2 * power), which is nu^power if
    eps is 0. A power of 1/2 is Adam's, and one of 0 does not divide.

    Args:
      power: the power of nu to divide by, >= 0.
      eps: added to the root of nu before it is raised, >= 0, in units of the gradient.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if there is
        no second moment.

    Example: the first corrected moments are -8 and 64; 64^(1/3) is 4.

      >>> from adam_jax import precondition, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(), bias_correct(), temper(1 / 3), precondition(eps=0.0)
      ... )
      >>> updates, _ = tx.update(jnp.float32(-8), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.4f}")
      -2.0000

    Reference: Chen et al. 2018 (Padam), Algorithm 1; Defazio & Jelassi 2021 (MADGRAD),
    Algorithm 1, where the power is 1/3.
    """
    power = check_non_negative("power", power)
    eps = check_non_negative("eps", eps)

    def raise_nu(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "temper")
        expect_second(m, "temper")
        past = m.count - 1

        def raise_leaf(nu):
            root = numerics.sqrt(nu) + at(eps, past, nu.dtype)
            zero = root == 0  # where the derivative of a power may be infinite
            raised = jnp.where(zero, 1, root) ** (4 * at(power, past, nu.dtype))
            return jnp.where(zero, 0, raised)

        nu = jax.tree.map(raise_leaf, m.nu)
        return m._replace(nu=nu, plain=False, corrected=m.corrected | {"nu"})

    return optax.stateless(raise_nu)


class RunningMaxState(NamedTuple):
    """State of `running_max`.

    Attributes:
      nu_max: the largest second moment so far, like nu.
      nu_max_format: the reader of nu_max, as in `Stored`.
    """

    nu_max: Any
    nu_max_format: Any


def running_max() -> optax.GradientTransformation:
    """Replace the second moment by its maximum over all steps.

        nu_max <- max(nu_max, nu)

    The maximum is kept in float32. It accumulates the errors of a nu that is rounded
    stochastically.

    Before `bias_correct`, this is the maximum of the raw moment (PyTorch); after it,
    that of the corrected one (Optax).

    Raises:
      ValueError: at the first trace, if there is no second moment.
      TypeError: if the state belongs to another transformation.

    Example: a gradient of 2 is remembered, where b2 = 0.5 would forget it.

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(scale_by_moments(b2=0.5), running_max())
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (2.0, 0.0, 0.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(moments.nu)
      2.0

    Reference: Reddi, Kale & Kumar 2018, Algorithm 2 (AMSGrad).
    """
    largest = Accumulator(
        {},
        lambda moment, value, h: jnp.maximum(moment, value),
        measure=lambda nu, mu, h: nu,
    )
    moment = Moment(largest, dense(), 2, "nu_max", "nu_dtype")

    def init_fn(params):
        return RunningMaxState(*moment.init(params))

    def update_fn(updates, state, params=None):
        del params
        m = expect_moments(updates, "running_max")
        expect_second(m, "running_max")
        expect_state(state, RunningMaxState, "running_max")
        stored = Stored(*state)
        after = moment.step(stored, moment.read(stored, m.nu), m.nu, m.count - 1)
        moments: Any = m._replace(nu=after.flows, plain=False)
        return moments, RunningMaxState(*after.stored)

    return optax.GradientTransformation(init_fn, update_fn)


_BOTH = frozenset({"mu", "nu"})


def _expect_uncorrected(moments: Any, chosen: frozenset[str], stage: str) -> Moments:
    """Return `moments`; refuse to correct one of them a second time."""
    m = expect_moments(moments, stage)
    for which in sorted(chosen & m.corrected):
        raise ValueError(
            f"{stage}() was given {which} corrected (or centered) already: keep only "
            "one of bias_correct() and correct_step_size(), and put it before center()."
        )
    return m


def _expect_one_weight(m: Moments) -> None:
    """Refuse mu and nu whose nu - |mu|^2 is not a variance.

    For constant gradients g, raw averages of rates 0.9 and 0.999 would leave
    (0.001 - 0.1^2) g^2 < 0 at the first step.
    """
    if not m.plain:
        raise ValueError(
            "center() needs plain averages of g and |g|^2 for each element: give "
            "scale_by_moments() decay rates, or ema(), for b1 and b2, and a nu_dtype "
            "that elements do not share."
        )
    if len(m.corrected) == 1:
        raise ValueError(
            f"center() was given {min(m.corrected)} corrected and the other moment "
            "not: correct both, with bias_correct()."
        )
    if not m.corrected and not m.one_rate:
        raise ValueError(
            "center() was given raw averages of different decay rates: put "
            "bias_correct() before it, or give b1 and b2 the same rate."
        )


def _scale_down(moment: Any, weight: Any) -> Any:
    """Divide a moment, a pytree or None, by a scalar."""
    scaled = map_leaves(
        lambda m: numerics.divide(m, weight.astype(numerics.real_dtype(m.dtype))),
        moment,
    )
    note_correction(moment, scaled, weight)
    return scaled
