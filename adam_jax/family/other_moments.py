"""Adam with another second moment."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.accumulators import (
    ema,
    infinity_norm,
    residual_variance,
    yogi_average,
)
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct, running_max
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def amsgrad(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AMSGrad: Adam that divides by the largest second moment so far.

        nu_max <- max(nu_max, nu_hat)
        params <- params - learning_rate * mu_hat / (sqrt(nu_max + eps_root) + eps)

    The maximum is kept in float32, whatever nu_dtype is. It accumulates the rounding
    errors of a nu that is rounded stochastically, so prefer a float32 nu here.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      bias_correction_mu: whether to correct mu; False in the paper.
      bias_correction_nu: whether to correct nu before the maximum is taken; False in
        the paper.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1/2. Adam's second update would be -0.000266.

      >>> import jax.numpy as jnp
      >>> tx = amsgrad(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")
      -0.000211

    When: Converges where Adam provably does not. On ordinary problems there is seldom a
    difference; one more buffer.

    Reference: Reddi, Kale & Kumar 2018, Algorithm 2.

    Differs from PyTorch, which corrects nu after the maximum. To do so, put
    `running_max()` before `bias_correct()` in a chain.
    Differs from Optax as `adam` does.
    """
    return chain(
        "amsgrad",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(mu=bias_correction_mu, nu=bias_correction_nu),
        running_max(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )


def adamax(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaMax: Adam with a decaying maximum instead of the second moment.

        nu <- max(b2 * nu, |g| + eps)
        params <- params - learning_rate * mu_hat / nu

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to each |g|, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1/2.

      >>> import jax.numpy as jnp
      >>> tx = adamax(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # (0.9 * 0.1 - 0.05) / 0.19 / 0.999
      -0.000211

    When: Gradients that are rare and large: bounded steps without a root. Forgets a
    spike slowly.

    Reference: Kingma & Ba 2014, Algorithm 2.

    Differs from Optax as `adam` does.
    """
    return chain(
        "adamax",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=infinity_norm(check_decay("b2", b2), eps),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=0.0),
        scale_by_lr(learning_rate),
    )


def adamaxw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    weight_decay: Hyperparam = exact(1e-4),
    mask: Mask = None,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaMaxW: AdaMax with weight decay decoupled from the gradient.

        params <- params - learning_rate * (adamax's update + weight_decay * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to each |g|, >= 0, in units of the gradient.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the second step of a parameter with the value 10; gradients 1, then -0.5.

      >>> import jax.numpy as jnp
      >>> tx, param = adamaxw(1e-3, weight_decay=0.1), jnp.float32(10)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")  # -1e-3 * ((0.9 * 0.1 - 0.05) / 0.19 / 0.999 + 1)
      -0.001211

    When: AdaMax where weights should decay.

    Reference: Kingma & Ba 2014, Algorithm 2; Loshchilov & Hutter 2017, Algorithm 2.

    Differs from Optax as `adam` does.
    """
    return chain(
        "adamaxw",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=infinity_norm(check_decay("b2", b2), eps),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=0.0),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def adabelief(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-16),
    eps_root: Hyperparam = exact(1e-16),
    *,
    nesterov: bool = False,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaBelief: Adam that divides by how far gradients are from their average.

        nu <- b2 * nu + (1 - b2) * (g - mu)^2 + eps_root
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat) + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added to nu in each step, >= 0, in units of the gradient squared.
      nesterov: whether the first moment looks one step ahead.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the first step is 1 / b1 learning rates, because g - mu is b1 * g.

      >>> import jax.numpy as jnp
      >>> tx = adabelief(1e-3)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.001111

    When: Longer steps where gradients agree. Sensitive to eps, which it needs much
    smaller than Adam.

    Reference: Zhuang et al. 2020, Algorithm 2.

    Differs from Optax as `adam` does.
    """
    return chain(
        "adabelief",
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=residual_variance(check_decay("b2", b2), eps_root),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps),
        scale_by_lr(learning_rate),
    )


def yogi(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-3),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Yogi: Adam whose second moment moves by (1 - b2) * g^2, whatever its size.

        nu <- nu - (1 - b2) * sign(nu - g^2) * g^2
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat) + eps)

    Both moments start at 1e-6.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then 0. The second one leaves nu as it is.

      >>> import jax.numpy as jnp
      >>> tx = yogi(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 0.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # 0.09 / 0.19 / (sqrt(0.001001 / 0.001999) + 0.001)
      -0.000668

    When: Second moments that should not fall fast after large gradients, as with sparse
    ones; needs a larger eps.

    Reference: Zaheer et al. 2018, Algorithm 2.

    Differs from Optax as `adam` does.
    """
    return chain(
        "yogi",
        scale_by_moments(
            b1=ema(check_decay("b1", b1), initial=1e-6),
            b2=yogi_average(check_decay("b2", b2), initial=1e-6),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps),
        scale_by_lr(learning_rate),
    )
