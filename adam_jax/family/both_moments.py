"""Adam, and its variants with a stage left out or added, or with Nesterov momentum."""

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
    """Build Adam: momentum divided by the root of an average of squared gradients.

        mu <- b1 * mu + (1 - b1) * g;    mu_hat = mu / (1 - b1^t)
        nu <- b2 * nu + (1 - b2) * g^2;  nu_hat = nu / (1 - b2^t)
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nesterov: whether the first moment looks one step ahead.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Returns:
      A gradient transformation. If `update` is given params, updates have their dtype.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if the state
        was made with another mu_dtype or nu_dtype.
      TypeError: if a hyperparameter is not a number; at the first trace, if a leaf is
        integer or boolean, or if the state has the parts of another optimizer.
      AssertionError: (chex) at the first trace, if the structure or shapes of the
        gradients are not those of the parameters.

    Example: two steps, the second with a gradient of the opposite sign.

      >>> import jax.numpy as jnp
      >>> tx = adam(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1, -2):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")
      0.000366

    When: The default for nearly everything. Its update forgets the gradients' scale, so
    its weights are not regularised by L2 as SGD's are: see adamw.

    Reference: Kingma & Ba 2014, Algorithm 1.

    Differs from Optax: moments are float32 or wider whatever the parameters' dtype,
    hyperparameters keep their own dtype, and the bias correction is more exact.
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
    """Build Adam without bias correction.

        params <- params - learning_rate * mu / (sqrt(nu) + eps)

    By default, its first step is (1 - b1) / sqrt(1 - b2) = 3.16 times the learning
    rate.

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

    Example: the first step.

      >>> import jax.numpy as jnp
      >>> tx = simplified_adam(1e-3)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.003162

    When: Shows what bias correction is for: without it, the first steps are up to three
    times too long and need a warm-up.

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
    """Build AdamW: Adam with weight decay decoupled from the gradient.

        params <- params - learning_rate * (adam's update + weight_decay * params)

    Adam with L2 regularisation is not AdamW. For that, put
    `add_decayed_weights(weight_decay)` before `adam(...)` in a chain.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nesterov: whether the first moment looks one step ahead.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the first step of a parameter with the value 10.

      >>> import jax.numpy as jnp
      >>> tx, param = adamw(1e-3, weight_decay=0.1), jnp.float32(10)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(param), param)
      >>> print(f"{updates:.6f}")
      -0.002000

    When: Transformers, and wherever Adam is to have weight decay, which scales with the
    learning rate.

    Reference: Loshchilov & Hutter 2017, Algorithm 2.

    Differs from PyTorch in the default weight decay: 1e-4, not 1e-2. Differs from the
    paper, as PyTorch and Optax do: the decay is multiplied by the learning rate.
    Differs from Optax as `adam` does.
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
    """Build NAdam: Adam whose first moment looks one step ahead.

    It is `adam(..., nesterov=True)`.

        mu_hat = b1 * mu / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nesterov: whether to look ahead; False gives Adam.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the first step is b1 (1 - b1) / (1 - b1^2) + 1 learning rates.

      >>> import jax.numpy as jnp
      >>> tx = nadam(1e-3)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.001474

    When: A little faster than Adam at the same rate, seldom by much.

    Reference: Dozat 2016, Algorithm 2.

    Differs from PyTorch: there b1 follows a schedule (momentum_decay).
    Differs from Optax as `adam` does.
    """
    return chain(
        "nadam",
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
    """Build NAdamW: AdamW whose first moment looks ahead, as in `nadam`.

        params <- params - learning_rate * (nadam's update + weight_decay * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nesterov: whether to look ahead; False gives AdamW.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the first step of a parameter with the value 10.

      >>> import jax.numpy as jnp
      >>> tx, param = nadamw(1e-3, weight_decay=0.1), jnp.float32(10)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(param), param)
      >>> print(f"{updates:.6f}")
      -0.002474

    When: Where AdamW serves, with a momentum that reacts sooner. At a small b1 there is
    hardly a difference.

    Reference: Dozat 2016, Algorithm 2; Loshchilov & Hutter 2017, Algorithm 2.

    Differs from Optax as `adam` does.
    """
    return chain(
        "nadamw",
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
