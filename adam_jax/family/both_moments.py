"""Adam, and what differs from it by a stage that is left out, added or nested."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.accumulators import ema
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = False,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam.

        mu <- b1 * mu + (1 - b1) * g;    mu_hat = mu / (1 - b1^t)
        nu <- b2 * nu + (1 - b2) * g^2;  nu_hat = nu / (1 - b2^t)
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule, a function
        of the step count (0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"); None: the parameters' dtype, float32 at least.
      nesterov: let the first moment look one step ahead.
      nu_dtype: how nu is stored, likewise.

    Returns:
      A transformation; its updates have the parameters' dtype where `update` is given
      them.

    Raises:
      ValueError: for a hyperparameter out of its range; at the first trace, for a state
        that was made with another mu_dtype or nu_dtype.
      TypeError: for what is no number; at the first trace, for integer or boolean
        leaves, and for the state of another optimizer.
      AssertionError: (chex) at the first trace, for gradients whose structure or shapes
        are not the parameters'.

    Example: two steps, the second against a gradient of the other sign.

      >>> import jax.numpy as jnp
      >>> tx = adam(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1, -2):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")
      0.000366

    Reference: Kingma & Ba 2014, Algorithm 1.
    """
    return chain(
        "adam",
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )


def simplified_adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam without bias correction.

        params <- params - learning_rate * mu / (sqrt(nu) + eps)

    Its first step is (1 - b1) / sqrt(1 - b2) = 3.16 times the learning rate at the
    defaults.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule, a function
        of the step count (0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"); None: the parameters' dtype, float32 at least.
      nu_dtype: how nu is stored, likewise.

    Raises:
      ValueError: for a hyperparameter out of its range.

    Example: the first step.

      >>> import jax.numpy as jnp
      >>> tx = simplified_adam(1e-3)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.003162

    Reference: Kingma & Ba 2014, Algorithm 1, without lines 9 and 10.
    """
    return chain(
        "simplified_adam",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        precondition(eps=eps),
        scale_by_lr(learning_rate),
    )


def adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-4),
    mask: Mask = None,
    *,
    nesterov: bool = False,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam with weight decay decoupled from the gradient.

        params <- params - learning_rate * (adam's update + weight_decay * params)

    For Adam with L2 regularisation, which is not AdamW, put
    `add_decayed_weights(weight_decay)` before `adam(...)` in a chain.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule, a function
        of the step count (0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"); None: the parameters' dtype, float32 at least.
      weight_decay: >= 0; each step takes `learning_rate * weight_decay * params` off.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function for a schedule, unless it is given `static_args="mask"`.)
      nesterov: let the first moment look one step ahead.
      nu_dtype: how nu is stored, likewise.

    Raises:
      ValueError: for a hyperparameter out of its range; if update() lacks params.

    Example: the first step of a parameter of 10.

      >>> import jax.numpy as jnp
      >>> tx, param = adamw(1e-3, weight_decay=0.1), jnp.float32(10)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(param), param)
      >>> print(f"{updates:.6f}")
      -0.002000

    Reference: Loshchilov & Hutter 2017, Algorithm 2.

    Differs from PyTorch in its default weight decay, 1e-4 and not 1e-2; from the
    paper, as PyTorch and Optax do, in multiplying the decay by the learning rate.
    """
    return chain(
        "adamw",
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def nadam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = True,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam whose first moment looks one step ahead: `adam(..., nesterov=True)`.

        mu_hat = b1 * mu / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule, a function
        of the step count (0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"); None: the parameters' dtype, float32 at least.
      nesterov: False makes it Adam.
      nu_dtype: how nu is stored, likewise.

    Raises:
      ValueError: for a hyperparameter out of its range.

    Example: the first step, b1 (1 - b1) / (1 - b1^2) + 1 learning rates.

      >>> import jax.numpy as jnp
      >>> tx = nadam(1e-3)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.001474

    Reference: Dozat 2016, Algorithm 2.

    Differs from PyTorch, where b1 follows a schedule (momentum_decay).
    """
    return adam(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nesterov=nesterov,
        nu_dtype=nu_dtype,
    )


def nadamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-4),
    mask: Mask = None,
    *,
    nesterov: bool = True,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """AdamW whose first moment looks ahead, as in `nadam`.

        params <- params - learning_rate * (nadam's update + weight_decay * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule, a function
        of the step count (0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"); None: the parameters' dtype, float32 at least.
      weight_decay: >= 0; each step takes `learning_rate * weight_decay * params` off.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function for a schedule, unless it is given `static_args="mask"`.)
      nesterov: False makes it AdamW.
      nu_dtype: how nu is stored, likewise.

    Raises:
      ValueError: for a hyperparameter out of its range; if update() lacks params.

    Example: the first step of a parameter of 10.

      >>> import jax.numpy as jnp
      >>> tx, param = nadamw(1e-3, weight_decay=0.1), jnp.float32(10)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(param), param)
      >>> print(f"{updates:.6f}")
      -0.002474

    Reference: Dozat 2016, Algorithm 2; Loshchilov & Hutter 2017, Algorithm 2.
    """
    return adamw(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay,
        mask,
        nesterov=nesterov,
        nu_dtype=nu_dtype,
    )
