"""The stages up to `Moments`: each line of Adam as a transformation of its own.

    gradients --scale_by_moments--> Moments --bias_correct--> Moments
              --precondition--> updates --(any Optax transform)--> updates
              --scale_by_lr--> updates

Here are the stages that emit `Moments`; those that emit updates are in `updates`.
Stages that hold no state are pure functions of `Moments`. Arithmetic is done in
float32 at least.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import gathering, numerics
from adam_jax.accumulators import Accumulator, ema
from adam_jax.checks import check_inexact
from adam_jax.formats import Storage, Stored, as_format, dense
from adam_jax.hyperparams import (
    Hyperparam,
    check_decay,
    exact,
)


class Moments(NamedTuple):
    """What flows from `scale_by_moments` to `precondition`.

    Transforms of plain updates, Optax's among them, belong after `precondition`; masks
    (`optax.masked`, `optax.multi_transform`) around a whole optimizer.

    Attributes:
      count: int32 scalar, the number of this step; the first is 1.
      grads: the gradients of this step, in the dtype in which they came.
      mu: the first moment, a pytree like grads (grads themselves where b1 is None),
        float32 at least.
      nu: the second moment, a pytree of real arrays like grads, or None.
      mu_weight: scalar, the weight of past gradients in mu, 1 - b1^t for an average
        of constant decay; 1 for whatever is not an average.
      nu_weight: the same for nu.
    """

    count: ArrayLike
    grads: Any
    mu: Any
    nu: Any
    mu_weight: jax.Array
    nu_weight: jax.Array


class MomentsState(NamedTuple):
    """State of `scale_by_moments`.

    Attributes:
      count: int32 scalar, the steps taken; it stops at the largest int32.
      mu: the first moment, a pytree like the parameters, or None.
      nu: the second moment, real, or None.
      weights: shape (2, 2). Column 0 holds the weights that mu and nu have seen,
        column 1 what rounding withheld from them. It makes the correction right for
        decays that change, and is there for constant ones too, so that the state has
        one structure whatever the hyperparameters are.
      mu_scales: what the format of mu keeps beside it, a pytree like mu; or None.
      nu_scales: the same for nu.
    """

    count: ArrayLike
    mu: Any
    nu: Any
    weights: jax.Array
    mu_scales: Any = None
    nu_scales: Any = None


def scale_by_moments(
    b1: Hyperparam | Accumulator | None = exact(0.9),
    b2: Hyperparam | Accumulator | None = exact(0.999),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Turn gradients into their running moments.

        mu <- b1 * mu + (1 - b1) * g
        nu <- b2 * nu + (1 - b2) * |g|^2

    Args:
      b1: decay of the first moment, in [0, 1), or an `Accumulator`; None keeps no
        first moment: g itself flows in its place (RMSProp).
      b2: the same for the second moment; None keeps none (momentum).
      mu_dtype: how mu is stored: a dtype, a `Format`, or the name of one ("float32",
        "bfloat16", "8bit"); None: at the parameters' dtype, float32 at least.
      nu_dtype: the same for nu, which is real.

    Returns:
      A transformation from gradients to `Moments`, with a `MomentsState`.

    Raises:
      ValueError: if a decay is outside [0, 1), or a half-precision array.
      TypeError: if a leaf is neither floating-point nor complex.

    Example: after five steps an average has seen the weight 1 - 0.9^5.

      >>> import jax.numpy as jnp
      >>> tx = scale_by_moments(b1=0.9)
      >>> state = tx.init(jnp.zeros(()))
      >>> for _ in range(5):
      ...     moments, state = tx.update(jnp.ones(()), state)
      >>> print(f"{moments.mu:.5f} {moments.mu_weight:.5f}")
      0.40951 0.40951

    Reference: Kingma & Ba 2014, Algorithm 1, lines 7 and 8.

    Differs from Optax in bounding finite gradients to 2^60 (float32), so that |g|^2
    cannot overflow, and in keeping a real nu for complex parameters.
    """
    first, second = _accumulator("b1", b1), _accumulator("b2", b2)
    mu_format = as_format("mu_dtype", mu_dtype)
    nu_format = as_format("nu_dtype", nu_dtype)

    def init_fn(params):
        check_inexact(params, "params")
        leaves = jax.tree.leaves(params)
        reals = [numerics.real_dtype(numerics.dtype_of(p)) for p in leaves]
        mu = nu = Stored(None)
        if first:
            mu = gathering.start(params, first.initial, mu_format, True)
        if second:
            nu = gathering.start(params, second.initial, nu_format, False)
        weights = jnp.zeros([2, 2], numerics.compute_dtype(*reals))
        return _moments_state(jnp.zeros([], jnp.int32), mu, nu, weights)

    def update_fn(updates, state, params=None):
        del params
        expect_updates(updates, "scale_by_moments")
        check_inexact(updates, "grads")
        old_mu = Stored(state.mu, state.mu_scales)
        old_nu = Stored(state.nu, state.nu_scales)
        grads = gathering.widen(
            updates,
            gathering.load(mu_format, old_mu),
            gathering.load(nu_format, old_nu),
        )
        if second:
            grads = jax.tree.map(numerics.bound, grads)
        past, weights = state.count, state.weights
        mu = gathering.gather(
            first, mu_format, True, old_mu, grads, grads, weights[0], past
        )
        if first is None:
            mu = mu._replace(moment=grads, flows=grads)
        nu = gathering.gather(
            second, nu_format, False, old_nu, grads, mu.moment, weights[1], past
        )
        count = optax.safe_increment(past)
        return (
            Moments(count, updates, mu.flows, nu.flows, mu.seen, nu.seen),
            _moments_state(
                count, mu.stored, nu.stored, jnp.stack([mu.weight, nu.weight])
            ),
        )

    return optax.GradientTransformation(init_fn, update_fn)


def bias_correct(*, mu: bool = True, nu: bool = True) -> optax.GradientTransformation:
    """Divide each moment by the weight that its average has seen.

        mu_hat = mu / (1 - b1^t)
        nu_hat = nu / (1 - b2^t)

    The weights come with the moments, so they agree with whatever decays were used,
    scheduled ones included.

    Args:
      mu: whether to correct the first moment.
      nu: whether to correct the second moment.

    Example: the first corrected moment is the gradient itself.

      >>> tx = optax.chain(scale_by_moments(), bias_correct())
      >>> moments, _ = tx.update(jnp.float32(3), tx.init(jnp.float32(0)))
      >>> print(f"{moments.mu:.5f} {moments.nu:.5f}")
      3.00000 9.00000

    Reference: Kingma & Ba 2014, Algorithm 1, lines 9 and 10, and section 3.
    """

    def correct(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "bias_correct")
        return m._replace(
            mu=_scale_down(m.mu, m.mu_weight) if mu else m.mu,
            nu=_scale_down(m.nu, m.nu_weight) if nu else m.nu,
        )

    return optax.stateless(correct)


def correct_step_size() -> optax.GradientTransformation:
    """Correct the bias in the step size alone, in place of `bias_correct`.

        mu <- mu * sqrt(1 - b2^t) / (1 - b1^t)

    With nu left as it is, `precondition(eps)` then adds eps to the uncorrected root:
    this eps is the "eps-hat" of the paper, and TensorFlow's.

    Example:

      >>> from adam_jax import precondition
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
        m = expect_moments(moments, "correct_step_size")
        return m._replace(mu=_scale_down(m.mu, m.mu_weight / jnp.sqrt(m.nu_weight)))

    return optax.stateless(correct)


def center() -> optax.GradientTransformation:
    """Make the second moment a variance, and let the gradient itself be divided by it.

        nu <- max(nu - |mu|^2, 0)
        mu <- g

    Reference: Graves 2013 (arXiv:1308.0850), equations 38 to 40 (centered RMSProp).
    """

    def subtract(moments: Any, params=None) -> Any:
        del params
        m = expect_moments(moments, "center")
        nu = jax.tree.map(
            lambda nu, mu: jnp.maximum(nu - numerics.abs_sq(mu), 0), m.nu, m.mu
        )
        grads = jax.tree.map(lambda g, mu: jnp.asarray(g, mu.dtype), m.grads, m.mu)
        return m._replace(mu=jax.tree.map(numerics.bound, grads), nu=nu)

    return optax.stateless(subtract)


class RunningMaxState(NamedTuple):
    """State of `running_max`: the largest second moment so far, like nu."""

    nu_max: Any


def running_max() -> optax.GradientTransformation:
    """Replace the second moment by its maximum over all steps.

        nu_max <- max(nu_max, nu)

    It is kept in float32. Of a nu that is rounded stochastically it gathers the errors.

    Before `bias_correct` it takes the maximum of the raw moment (PyTorch), after it
    that of the corrected one (Optax).

    Reference: Reddi, Kale & Kumar 2018, Algorithm 2 (AMSGrad).
    """

    def init_fn(params):
        return RunningMaxState(gathering.start(params, 0.0, dense(), False).values)

    def update_fn(updates, state, params=None):
        del params
        m = expect_moments(updates, "running_max")
        nu_max = jax.tree.map(
            lambda old, nu: jnp.maximum(old.astype(nu.dtype), nu), state.nu_max, m.nu
        )
        return m._replace(nu=nu_max), RunningMaxState(
            gathering.cast_like(nu_max, state.nu_max)
        )

    return optax.GradientTransformation(init_fn, update_fn)


def _moments_state(
    count: ArrayLike, mu: Stored, nu: Stored, weights: jax.Array
) -> MomentsState:
    return MomentsState(count, mu.values, nu.values, weights, mu.scales, nu.scales)


def _accumulator(name: str, value: Any) -> Accumulator | None:
    """Return the accumulator that `value` is or, being a decay rate, stands for."""
    if value is None:
        return None
    if not isinstance(value, Accumulator):
        return ema(check_decay(name, value))
    if value.averages and "decay" not in value.hyperparams:
        raise ValueError(
            f"{name}: an Accumulator that averages needs a hyperparameter 'decay', got "
            f"{list(value.hyperparams)}: bias correction follows from it."
        )
    if "decay" in value.hyperparams:
        check_decay(f"{name}: decay", value.hyperparams["decay"])
    if value.power not in (1, 2):
        raise ValueError(f"{name}: the power of a moment is 1 or 2, got {value.power}.")
    return value


def expect_updates(value: Any, stage: str) -> None:
    """Raise a TypeError if `value` is `Moments`, for a stage that takes plain trees."""
    if isinstance(value, Moments):
        raise TypeError(
            f"{stage}() takes gradients or updates, got Moments: put precondition() "
            "before it, which makes updates of them."
        )


def expect_moments(value: Any, stage: str) -> Moments:
    """Return `value` if it is `Moments`, and none whose count was scaled or clipped."""
    # Optax's transforms would map over Moments, unaware: the count then is no integer.
    if not isinstance(value, Moments) or not jnp.issubdtype(
        numerics.dtype_of(value.count), jnp.integer
    ):
        raise TypeError(
            f"{stage}() takes the Moments that scale_by_moments() emits, got "
            f"{type(value).__name__}: put scale_by_moments() before it, and transforms "
            "of plain updates after precondition()."
        )
    return value


def _scale_down(moment: Any, weight: jax.Array) -> Any:
    """Divide a moment, a pytree or None, by a scalar."""
    return jax.tree.map(
        lambda m: numerics.divide(m, weight.astype(numerics.real_dtype(m.dtype))),
        moment,
    )
