"""Adam with a mixture in place of its averages."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    check_between,
    check_decay,
    check_non_negative,
    check_number,
    exact,
)
from adam_jax.moments.accumulators import ema, trace
from adam_jax.moments.storage import Storage
from adam_jax.moments.variations import difference, mixture
from adam_jax.stages.branching import add_branches, take_gradients
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import hold
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def qhadam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.995),
    b2: Hyperparam = exact(0.999),
    v1: Hyperparam = exact(0.7),
    v2: Hyperparam = exact(1.0),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build QHAdam: Adam whose moments are each mixed with the gradient of this step.

        m <- (1 - v1) * g + v1 * mu_hat
        v <- (1 - v2) * g^2 + v2 * nu_hat
        params <- params - learning_rate * m / (sqrt(v + eps_root) + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      v1: the share of mu_hat, in [0, 1]; 1 is Adam.
      v2: the share of nu_hat, in [0, 1]; 1 is Adam.
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then 0. Of mu_hat, 0.7 are taken; Adam's update is -0.000705.

      >>> import jax.numpy as jnp
      >>> tx = qhadam(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 0.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")
      -0.000494

    When: Long momentum, by a large b1, that still reacts to each gradient at once. v1
    and v2 are two more numbers to tune; at 1 this is Adam.

    Reference: Ma & Yarats 2019 (arXiv:1810.06801).
    """
    v1, v2 = check_between("v1", v1, 0, 1), check_between("v2", v2, 0, 1)
    return chain(
        "qhadam",
        scale_by_moments(
            b1=mixture(ema(check_decay("b1", b1)), v1),
            b2=mixture(
                ema(check_decay("b2", b2)), check_between("v2", v2, 0, 1), order=2
            ),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )


def ademamix(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    b3: Hyperparam = exact(0.9999),
    alpha: Hyperparam = exact(5.0),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdEMAMix: AdamW with a second, slower average of gradients.

        slow <- b3 * slow + (1 - b3) * g
        params <- params - learning_rate * (
            (mu_hat + alpha * slow) / (sqrt(nu_hat + eps_root) + eps)
            + weight_decay * params)

    The slow average is not corrected. The paper lets alpha and b3 rise by schedules.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b3: decay rate of the slow average, in [0, 1).
      alpha: the factor of the slow average, any finite number.
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how both averages are stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the first step. The slow average adds 5 * 0.01.

      >>> import jax.numpy as jnp
      >>> tx, param = ademamix(1e-3, b3=0.99), jnp.float32(0)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(param), param)
      >>> print(f"{updates:.6f}")
      -0.001050

    When: Long training of language models, where, its paper claims, gradients of
    thousands of steps ago still help. Short runs do not fill the slow average. b3 and
    alpha have to be warmed up; one more buffer.

    Reference: Pagliardini et al. 2024 (arXiv:2409.03137), Algorithm 1.

    Differs from Optax as `adam` does.
    """
    return chain(
        "ademamix",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        add_branches(
            (1.0, bias_correct()),
            (
                check_number("alpha", alpha),
                optax.chain(
                    take_gradients(),
                    scale_by_moments(check_decay("b3", b3), None, mu_dtype=mu_dtype),
                ),
            ),
        ),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def simplified_ademamix(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.99),
    b2: Hyperparam = exact(0.95),
    alpha: Hyperparam = exact(0.0),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build simplified AdEMAMix: AdamW by a decaying sum plus alpha times the gradient.

        mu <- b1 * mu + g
        params <- params - learning_rate * (
            (mu + alpha * g) / (sqrt(nu_hat + eps_root) + eps) + weight_decay * params)

    The sum mu is 1 / (1 - b1) times as large as an average: learning rates are smaller.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the sum of gradients, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      alpha: the factor of the gradient, any finite number; 0 adds nothing to mu.
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the second of two gradients of 1 counts 1 + alpha times.

      >>> import jax.numpy as jnp
      >>> tx, param = simplified_ademamix(1e-3, alpha=2.0), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state, param)
      >>> print(f"{updates:.6f}")  # -1e-3 * (0.99 + 1 + 2)
      -0.003990

    When: AdEMAMix without its second buffer, at like results, its paper claims. AdamW's
    learning rates do not carry over: steps have another scale.

    Reference: Morwani et al. 2025 (arXiv:2502.02431), Algorithm 1.

    Differs from Optax as `adam` does.
    """
    return chain(
        "simplified_ademamix",
        scale_by_moments(
            b1=mixture(trace(check_decay("b1", b1)), 1.0, check_number("alpha", alpha)),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def optimistic_adam(
    learning_rate: Hyperparam,
    optimism: Hyperparam | None = None,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = True,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build optimistic Adam: each step adds how much Adam's update has changed.

        r <- mu_hat / (sqrt(nu_hat + eps_root) + eps)
        params <- params - learning_rate * r - optimism * (r - (r of the step before))

    At the first step there is no change.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      optimism: the factor of the change, >= 0; None means learning_rate.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu and the last r are stored: a dtype, a `Format` or the name
        of one ("float32", "bfloat16", "8bit"). None means the parameters' dtype,
        float32 or wider.
      nesterov: whether the first moment looks one step ahead.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1, at four times the optimism.

      >>> import jax.numpy as jnp
      >>> tx = optimistic_adam(1e-3, 4e-3, nesterov=False)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -1.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # 1e-3 * 0.0526 + 4e-3 * 1.0526
      0.004263

    When: Games of two players, such as GANs, in which Adam circles. Where one loss is
    minimised there is no circling to undo. One more buffer.

    Reference: Daskalakis et al. 2018 (arXiv:1711.00141), Algorithm 1.

    Differs from Optax as `adam` does, and takes schedules.
    """
    learning_rate = check_non_negative("learning_rate", learning_rate)
    return chain(
        "optimistic_adam",
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        hold(
            "optimistic_adam",
            mixture(
                difference(),
                moment=learning_rate
                if optimism is None
                else check_non_negative("optimism", optimism),
                gradient=learning_rate,
            ),
            dtype=mu_dtype,
        ),
        scale_by_lr(1.0),
    )
