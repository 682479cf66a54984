"""Optimizers that step Adam elsewhere: averaged, held back, kept on a sphere."""

import operator

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    check_whole,
    derived,
    exact,
)
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import (
    precondition,
    rectification,
    rectified_precondition,
)
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.iterates import keep_radius, schedule_free, step_back
from adam_jax.stages.leaves import scale_to_params
from adam_jax.stages.updates import add_decayed_weights, scale_by_lr


def schedule_free_adamw(
    learning_rate: Hyperparam = exact(0.0025),
    warmup_steps: int | None = None,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    weight_decay: Hyperparam = exact(0.0),
    weight_lr_power: Hyperparam = exact(2.0),
    state_dtype: DTypeLike | None = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build schedule-free AdamW: an average of iterates in place of a schedule.

        z <- z - learning_rate * (g / (sqrt(nu_hat) + eps) + weight_decay * params)
        x <- (1 - c) x + c z
        params <- b1 x + (1 - b1) z

    For c see `schedule_free`. Evaluate the model at x, which is
    `optax.contrib.schedule_free_eval_params(state[-1], params)`.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
        It may rise, but need not fall.
      warmup_steps: the number of steps over which the learning rate rises from 0, an
        integer >= 1; None means none. A static int: name it in the `static_args` of
        `optax.inject_hyperparams`.
      b1: how near to x the parameters are, in (0, 1): it stands for momentum.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`
        from z.
      weight_lr_power: >= 0. The larger it is, the less weight x gives to iterates
        whose learning rate was small.
      state_dtype: the dtype of z; None means the parameters', float32 or wider.
      nu_dtype: how nu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: three steps. x is z at first, then the mean of all z.

      >>> tx, y = schedule_free_adamw(0.1), jnp.float32(0)
      >>> state = tx.init(y)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.float32(1), state, y)
      ...     y = optax.apply_updates(y, updates)
      >>> x = optax.contrib.schedule_free_eval_params(state[-1], y)
      >>> print(f"{state[-1].z:.2f} {x:.2f} {y:.2f}")
      -0.30 -0.20 -0.21

    When: Runs whose length is not known in advance: it needs no schedule. The learning
    rate is still to be tuned, and the model has to be evaluated at x. z takes the place
    of mu in memory.

    Reference: Defazio et al. 2024 (arXiv:2405.15682), Algorithm 1.

    Differs from the authors' code, whose warm-up begins at learning_rate /
    warmup_steps, and whose c follows the rate of the step itself.
    Differs from Optax as `adam` does: in bfloat16 parameters z is float32. As in Optax,
    c follows the learning rate of the next step.
    """
    rate = check_non_negative("learning_rate", learning_rate, half_precision=True)
    if warmup_steps is not None:
        steps = check_whole("warmup_steps", warmup_steps)
        rate = derived(
            operator.mul,
            rate,
            lambda count: jnp.minimum(1, jnp.asarray(count, float) / steps),
        )
    return chain(
        "schedule_free_adamw",
        scale_by_moments(b1=None, b2=check_decay("b2", b2), nu_dtype=nu_dtype),
        bias_correct(mu=False),
        precondition(eps=eps),
        add_decayed_weights(weight_decay),
        scale_by_lr(rate),
        schedule_free(
            (lambda count: at(rate, count + 1, float)) if callable(rate) else rate,
            check_decay("b1", b1),
            weight_lr_power,
            state_dtype,
        ),
    )


def schedule_free_radam(
    learning_rate: Hyperparam = exact(0.0025),
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    weight_decay: Hyperparam = exact(0.0),
    weight_lr_power: Hyperparam = exact(2.0),
    state_dtype: DTypeLike | None = None,
    *,
    silent: bool = True,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build schedule-free RAdam: schedule-free AdamW that RAdam's r warms up.

        z <- z - learning_rate * r * (g / (sqrt(nu_hat) + eps) + weight_decay * params)
        x <- (1 - c) x + c z
        params <- b1 x + (1 - b1) z

    For r see `rectified_precondition`, with a threshold of 4; it is part of the
    learning rate that c follows. Until then nothing moves: for 4 steps, at the default
    b2.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: how near to x the parameters are, in (0, 1): it stands for momentum.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      weight_decay: >= 0. Each step subtracts `learning_rate * r * weight_decay *
        params` from z.
      weight_lr_power: >= 0. The larger it is, the less weight x gives to iterates
        whose learning rate was small.
      state_dtype: the dtype of z; None means the parameters', float32 or wider.
      silent: whether nothing moves before nu is trusted; if not, z moves by g itself,
        with r = 1.
      nu_dtype: how nu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: steps 4 and 5.

      >>> tx, y = schedule_free_radam(0.1), jnp.float32(0)
      >>> state, sizes = tx.init(y), []
      >>> for _ in range(5):
      ...     updates, state = tx.update(jnp.float32(1), state, y)
      ...     sizes.append(f"{updates:.6f}")
      >>> print(*sizes[3:])  # r = 0.017 at the fifth step
      0.000000 -0.001731

    When: As `schedule_free_adamw`, without a warm-up to choose. If you have one that
    works, there is nothing to gain.

    Reference: Defazio et al. 2024 (arXiv:2405.15682), Algorithm 1; Liu et al. 2020,
    Algorithm 2 (RAdam); together in the authors' code.
    """
    rate = check_non_negative("learning_rate", learning_rate, half_precision=True)
    decay = check_non_negative("weight_decay", weight_decay)
    return chain(
        "schedule_free_radam",
        scale_by_moments(b1=None, b2=check_decay("b2", b2), nu_dtype=nu_dtype),
        bias_correct(mu=False),
        rectified_precondition(eps=eps, threshold=4.0, silent=silent),
        add_decayed_weights(
            derived(operator.mul, decay, rectification(b2, 4.0, silent=silent))
        ),
        scale_by_lr(rate),
        schedule_free(
            derived(operator.mul, rate, rectification(b2, 4.0, silent=silent)),
            check_decay("b1", b1),
            weight_lr_power,
            state_dtype,
        ),
    )


def lookahead(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    sync_period: ArrayLike = 6,
    slow_step_size: Hyperparam = exact(0.5),
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Lookahead around Adam: some steps forward, and part of the way back.

        params <- params - learning_rate * (adam's update)
        every sync_period steps:  slow <- slow + slow_step_size * (params - slow)
                                  params <- slow

    Adam's moments go on.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      sync_period: the number of steps forward, an integer >= 1; not a schedule.
      slow_step_size: how much of the way remains, >= 0; at 1 this is Adam.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: two steps forward, one back.

      >>> tx, param = lookahead(0.1, sync_period=2), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state, param)
      ...     param = optax.apply_updates(param, updates)
      >>> print(f"{param:.4f}")
      -0.1000

    When: Its paper claims less variance, and results that depend less on Adam's
    hyperparameters. A rate that decays lowers the variance, too. One more copy of the
    parameters.

    Reference: Zhang et al. 2019 (arXiv:1907.08610), Algorithm 1.

    Differs from `optax.lookahead`, which wraps any optimizer and has parameters of its
    own, fast and slow: here the parameters are the fast ones.
    """
    return chain(
        "lookahead",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
        step_back(sync_period, slow_step_size),
    )


def adam_hyperball(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Adam on a sphere: each matrix keeps the norm that it started with.

        step = learning_rate * R * u / |u|,     u = mu_hat / (sqrt(nu_hat) + eps)
        params <- R * (params - step) / |params - step|

    So the learning rate is the angle of a step, in radians, and takes the place of
    weight decay. Norms are those of whole leaves. Leaves with fewer than two axes, such
    as biases, are stepped by Adam. A matrix that starts at 0 stays there.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: from (5, 0), a step upwards of 3/4 of its length, and back to the length 5.

      >>> tx, params = adam_hyperball(0.75), jnp.array([[5.0, 0.0]])
      >>> grads = jnp.array([[0.0, -1.0]])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(f"{params[0, 0] + updates[0, 0]:.4f} {updates[0, 1]:.4f}")
      4.0000 3.0000

    When: Weights of fixed norm: no decay to tune, and its authors claim that one
    learning rate fits several widths and depths. Not for matrices whose norm has to
    grow, such as those that start near 0.

    Reference: Wen et al. 2025 (Hyperball; later arXiv:2606.16899).
    """
    return chain(
        "adam_hyperball",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_to_params(),
        scale_by_lr(learning_rate),
        keep_radius(),
    )
