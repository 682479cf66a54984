"""Adam that is given another gradient."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    check_decay,
    check_non_negative,
    check_whole,
    derived,
    exact,
)
from adam_jax.measures import largest, norm
from adam_jax.moments.accumulators import ema
from adam_jax.moments.storage import Storage
from adam_jax.moments.variations import difference, mixture, restarted
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import hold
from adam_jax.stages.leaves import adjust_leaves, resize, resize_spikes, shorten
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def grokfast_adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    slow_decay: Hyperparam = exact(0.98),
    slow_weight: Hyperparam = exact(2.0),
    weight_decay: Hyperparam = exact(0.01),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdamW with Grokfast: the slow part of the gradient is amplified.

        h <- slow_decay * h + (1 - slow_decay) * g
        params <- params - learning_rate * (adamw's update for g + slow_weight * h)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu and h are stored: a dtype, a `Format` or the name
        of one ("float32", "bfloat16", "8bit"). None means the parameters' dtype,
        float32 or wider.
      slow_decay: decay rate of the slow average h, in [0, 1).
      slow_weight: the factor of h, >= 0.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then -1. AdamW's second update would be 0.000053.

      >>> import jax.numpy as jnp
      >>> tx, param = grokfast_adamw(1e-3, slow_weight=20.0), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -1.0):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")
      -0.000109

    When: Algorithmic data, where generalisation comes long after fitting: there its
    paper claims that it comes much sooner. Elsewhere it acts as one more, slower
    momentum, at the price of a buffer.

    Reference: Lee et al. 2024 (arXiv:2405.20233), Algorithm 2 (Grokfast-EMA).

    Differs from the authors' code, where h starts at the first gradient, not at 0.
    """
    return chain(
        "grokfast_adamw",
        hold(
            "grokfast_adamw",
            mixture(
                ema(check_decay("slow_decay", slow_decay)),
                moment=check_non_negative("slow_weight", slow_weight),
                gradient=1.0,
            ),
            dtype=mu_dtype,
        ),
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def mars_adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.95),
    b2: Hyperparam = exact(0.99),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    gamma: Hyperparam = exact(0.025),
    weight_decay: Hyperparam = exact(0.01),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build MARS-AdamW: AdamW for gradients corrected by how much they have changed.

        c <- g + gamma * b1 / (1 - b1) * (g - (g of the step before))
        c <- c / max(1, norm(c))
        params <- params - learning_rate * (adamw's update for c)

    The norm is that of a leaf. At the first step nothing has changed, so c starts as g.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu and the last gradient are stored: a dtype, a `Format` or the name
        of one ("float32", "bfloat16", "8bit"). None means the parameters' dtype,
        float32 or wider.
      gamma: how much of the change is added, >= 0.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 0.1, then 0.2. The second c is 0.2 + 0.475 * 0.1.

      >>> import jax.numpy as jnp
      >>> tx, param = mars_adamw(1e-3), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (0.1, 0.2):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")
      -0.000929

    When: Language models: its paper claims fewer steps than AdamW's, by gradients of
    less variance. Here the change is that between two batches, which is mostly noise if
    they are small. One more buffer.

    Reference: Yuan et al. 2024 (arXiv:2411.10438), Algorithm 2, with the gradient of
    the step before in place of a second one on the same data (MARS-approx).

    Differs from the authors' code, which leaves leaves with one axis to AdamW.
    """
    return chain(
        "mars_adamw",
        hold(
            "mars_adamw",
            mixture(
                difference(),
                moment=derived(
                    lambda gamma, b1: gamma * b1 / (1 - b1),
                    check_non_negative("gamma", gamma),
                    check_decay("b1", b1),
                ),
                gradient=1.0,
            ),
            dtype=mu_dtype,
        ),
        adjust_leaves(norm, shorten),
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def stable_spam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    norm_b1: Hyperparam = exact(0.7),
    norm_b2: Hyperparam = exact(0.9),
    clip_decay: Hyperparam = exact(0.999),
    reset_every: int = 1000,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Stable-SPAM: Adam with tamed gradients, whose moments restart at times.

        most <- max(|g|);  limit <- average(clip_decay; most)
        g <- g / most * limit_hat   where |g| > limit_hat
        size <- norm(g);  m <- average(norm_b1; size);  v <- average(norm_b2; size^2)
        g <- g / size * m_hat / (sqrt(v_hat) + 1e-8)
        params <- params - learning_rate * (adam's update for g)

    Maximum and norm are those of a leaf. mu, nu and their weights start anew every
    reset_every steps; the averages of sizes do not.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      norm_b1: decay rate of the average of norms, in [0, 1).
      norm_b2: decay rate of the average of squared norms, in [0, 1).
      clip_decay: decay rate of the average of the largest elements, in [0, 1).
      reset_every: the number of steps after which mu and nu start anew, an integer
        >= 1. (To `optax.inject_hyperparams`, say `static_args="reset_every"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -100. Adam's second update would be 0.000737.

      >>> import jax.numpy as jnp
      >>> tx = stable_spam(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -100.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")
      -0.000045

    When: Training in very low precision, such as 4 bits, where gradients have spikes.
    Without spikes there is little to tame, and each restart forgets good moments.

    Reference: Huang et al. 2025 (arXiv:2502.17055), Algorithm 1.
    """
    return chain(
        "stable_spam",
        adjust_leaves(
            largest,
            resize_spikes,
            optax.chain(
                scale_by_moments(check_decay("clip_decay", clip_decay), None),
                bias_correct(),
                precondition(),
            ),
        ),
        adjust_leaves(
            norm,
            resize,
            optax.chain(
                scale_by_moments(
                    check_decay("norm_b1", norm_b1), check_decay("norm_b2", norm_b2)
                ),
                bias_correct(),
                precondition(),
            ),
        ),
        scale_by_moments(
            b1=restarted(
                ema(check_decay("b1", b1)), check_whole("reset_every", reset_every)
            ),
            b2=restarted(
                ema(check_decay("b2", b2)), check_whole("reset_every", reset_every)
            ),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )
