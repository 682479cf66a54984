"""Optimizers whose second moments are means of rows and columns: Adafactor, CAME."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    check_number,
    check_whole,
    exact,
)
from adam_jax.moments.sharing import factored as by_factors
from adam_jax.moments.squares import floored_average, rising_decay
from adam_jax.moments.storage import Storage
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import average_updates
from adam_jax.stages.leaves import clip_rms, scale_by_param_rms
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def adafactor(
    learning_rate: Hyperparam | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Hyperparam = exact(0.8),
    decay_offset: Hyperparam = exact(0.0),
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ArrayLike | None = exact(1.0),
    momentum: Hyperparam | None = None,
    dtype_momentum: Storage = "float32",
    weight_decay_rate: Hyperparam | None = None,
    eps: Hyperparam = exact(1e-30),
    factored: bool = True,
    weight_decay_mask: Mask = None,
) -> optax.GradientTransformation:
    """Build Adafactor: nu as means of rows and columns, steps in units of the params.

        nu <- d * nu + (1 - d) * (g^2 + eps),  d = 1 - t^-decay_rate, as row by column
        u = g / sqrt(nu);  u <- u / max(1, rms(u) / clipping_threshold)
        params <- params - learning_rate * max(rms(params), 1e-3) * u

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these,
        unless they say otherwise. None means 1.
      min_dim_size_to_factor: leaves whose second longest axis is shorter keep a whole
        nu. A static int: name it in the `static_args` of `optax.inject_hyperparams`.
      decay_rate: the exponent of the decay rate of nu, >= 0.
      decay_offset: the number of steps before the first that counts in d, when a run is
        continued on other data.
      multiply_by_parameter_scale: whether steps are in units of the root mean square of
        the leaf's parameters.
      clipping_threshold: the largest root mean square of u; None clips nothing. Not a
        schedule.
      momentum: decay rate of an average of the steps, in [0, 1); None means no average.
      dtype_momentum: how that average is stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.
      weight_decay_rate: >= 0. Each step subtracts `weight_decay_rate * params`, without
        the learning rate; None means no decay.
      eps: added to g^2, >= 0, in units of the gradient squared.
      factored: whether to keep means of rows and columns; if not, a whole nu.
      weight_decay_mask: which parameters decay: a pytree of booleans, a prefix of
        params, or a function of params that returns one. (`optax.inject_hyperparams`
        takes a function to be a schedule unless you pass it
        `static_args="weight_decay_mask"`.)

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: u is 1, so the first step is a tenth of the parameter.

      >>> import jax.numpy as jnp
      >>> tx, param = adafactor(0.1), jnp.float32(5)
      >>> updates, _ = tx.update(jnp.float32(-7), tx.init(param), param)
      >>> print(f"{updates:.4f}")
      0.5000

    When: Large transformers: without momentum it has next to no state. Steps are
    relative to the parameters. Where Adam's state fits in memory there is little reason
    for it.

    Reference: Shazeer & Stern 2018 (arXiv:1804.04235), Algorithms 4 to 6.

    Differs from PyTorch, which factors every leaf of two or more axes, along its last
    two, takes no larger rate than 1 / sqrt(t), and decays in proportion to the rate.
    Differs from Optax as `adam` does: in bfloat16 parameters it keeps float32 means.
    """
    rate = check_non_negative(
        "learning_rate", 1.0 if learning_rate is None else learning_rate
    )

    def schedule(count):  # for numbers, too: one structure of the state
        return at(rate, count, jnp.result_type(float))

    return chain(
        "adafactor",
        scale_by_moments(
            b1=None,
            b2=floored_average(
                rising_decay(
                    check_non_negative("decay_rate", decay_rate),
                    check_number("decay_offset", decay_offset),
                ),
                check_non_negative("eps", eps),
            ),
            nu_dtype=by_factors(
                check_whole("min_dim_size_to_factor", min_dim_size_to_factor)
            )
            if factored
            else None,
        ),
        precondition(eps=0.0),
        *([clip_rms(clipping_threshold)] if clipping_threshold is not None else []),
        optax.scale_by_schedule(schedule),
        *([scale_by_param_rms()] if multiply_by_parameter_scale else []),
        *(
            [
                average_updates(
                    check_decay("momentum", momentum),
                    dtype_momentum,
                    argument="dtype_momentum",
                )
            ]
            if momentum is not None
            else []
        ),
        *(
            [
                add_decayed_weights(
                    check_non_negative(
                        "weight_decay_rate", weight_decay_rate, half_precision=True
                    ),
                    weight_decay_mask,
                )
            ]
            if weight_decay_rate is not None
            else []
        ),
        scale_by_lr(1.0),
    )


def came(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    b3: Hyperparam = exact(0.9999),
    eps: Hyperparam = exact(1e-30),
    eps_confidence: Hyperparam = exact(1e-16),
    clipping_threshold: ArrayLike = exact(1.0),
    *,
    min_dim_size_to_factor: int = 128,
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    mu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build CAME: Adafactor with momentum, and shorter steps where updates vary.

        v <- b2 * v + (1 - b2) * (g^2 + eps)                      as row by column
        u = g / sqrt(v);  u <- u / max(1, rms(u) / clipping_threshold)
        m <- b1 * m + (1 - b1) * u
        s <- b3 * s + (1 - b3) * ((u - m)^2 + eps_confidence)     as row by column
        params <- params - learning_rate * (m / sqrt(s) + weight_decay * params)

    No moment is corrected, so the first steps are about ten learning rates long: use a
    warm-up.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the average m of steps, in [0, 1).
      b2: decay rate of the second moment v of gradients, in [0, 1).
      b3: decay rate of s, the average of (u - m)^2, in [0, 1).
      eps: added to g^2, >= 0, in units of the gradient squared.
      eps_confidence: added to (u - m)^2, >= 0, a number without units.
      clipping_threshold: the largest root mean square of u, a number or a 0-d array.
      min_dim_size_to_factor: leaves whose second longest axis is shorter keep whole v
        and s. A static int: name it in the `static_args` of `optax.inject_hyperparams`.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how m is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: u is 1 after it is clipped, m 0.1 and s 0.81e-4.

      >>> import jax.numpy as jnp
      >>> tx, param = came(1e-3), jnp.float32(0)
      >>> updates, _ = tx.update(jnp.float32(5), tx.init(param), param)
      >>> print(f"{updates:.6f}")
      -0.011111

    When: Adafactor with momentum, which trusts less what its factors get wrong: its
    paper claims results like Adam's on language models. Only large matrices save
    memory, and it needs a warm-up.

    Reference: Luo et al. 2023 (arXiv:2307.02047), Algorithm 2.

    Differs from the authors' code, which does not divide by s in leaves that are no
    matrices (of which the paper says nothing), and factors all that are.
    """
    return chain(
        "came",
        scale_by_moments(
            b1=None,
            b2=floored_average(check_decay("b2", b2), check_non_negative("eps", eps)),
            nu_dtype=by_factors(
                check_whole("min_dim_size_to_factor", min_dim_size_to_factor)
            ),
        ),
        precondition(eps=0.0),
        clip_rms(clipping_threshold),
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=floored_average(
                check_decay("b3", b3),
                check_non_negative("eps_confidence", eps_confidence),
                residual=True,
            ),
            mu_dtype=mu_dtype,
            nu_dtype=by_factors(min_dim_size_to_factor),
        ),
        precondition(eps=0.0),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
