"""Adam with a bound on its steps."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.storage import Storage
from adam_jax.stages.bounding import bound_by_average, bounded_precondition
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.leaves import divide_by_rms
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def adabound(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    final_lr: Hyperparam = exact(0.1),
    gamma: Hyperparam = exact(1e-3),
    eps: Hyperparam = exact(1e-8),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaBound: Adam with step sizes between bounds that close in on SGD's.

        lower = final_lr * (1 - 1 / (gamma * t + 1))
        upper = final_lr * (1 + 1 / (gamma * t))
        size = clip(learning_rate / (sqrt(nu_hat) + eps), lower, upper)
        params <- params - size * mu_hat

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      final_lr: the step size that the bounds approach, >= 0, as for SGD with momentum.
      gamma: how fast the bounds approach it, >= 0; with 0 this is Adam.
      eps: added to the root of nu, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1/2. At the second step the bounds are 1/15 and 3/20.

      >>> import jax.numpy as jnp
      >>> tx = adabound(1e-3, gamma=1.0)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.5f}")  # -(0.09 - 0.05) / 0.19 / 15
      -0.01404

    When: Adam at first and SGD at last: its paper claims that this generalises better
    on images. SGD's rate must be chosen, and it is no help where SGD does poorly.

    Reference: Luo et al. 2019 (arXiv:1902.09843), Algorithm 2.

    Differs from the paper: moments are corrected, and steps do not shrink with sqrt(t).
    Differs from the authors' code, which corrects both moments inside the clip, and has
    final_lr follow the schedule of the learning rate.
    """
    return chain(
        "adabound",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        bounded_precondition(learning_rate, final_lr, gamma, eps),
        scale_by_lr(1.0),
    )


def adamod(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    b3: Hyperparam = exact(0.9999),
    eps: Hyperparam = exact(1e-8),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaMod: Adam whose step sizes are bounded by their average so far.

        size = learning_rate / (sqrt(nu_hat) + eps)
        average <- b3 * average + (1 - b3) * size
        params <- params - min(size, average) * mu_hat

    The average starts at 0, so steps warm up over about 1 / (1 - b3) steps.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b3: decay rate of the average of step sizes, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu and the average are stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1/2. Adam's step sizes would be 0.001 and 0.001265.

      >>> import jax.numpy as jnp
      >>> tx = adamod(1e-3, b3=0.9)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.7f}")  # -(0.9 * 1e-4 + 0.1 * 0.001265) * 0.04 / 0.19
      -0.0000456

    When: Bounds the long steps of elements whose second moment is still near 0, in
    place of a warm-up. No help in runs of less than about 1 / (1 - b3) steps, which it
    slows down. One more buffer.

    Reference: Ding et al. 2019 (arXiv:1910.12249), Algorithm 1.

    Differs from the authors' code, which corrects both moments in the step sizes before
    it averages them.
    """
    return chain(
        "adamod",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        bound_by_average(learning_rate, check_decay("b3", b3), eps, nu_dtype),
        scale_by_lr(1.0),
    )


def stable_adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    weight_decay: Hyperparam = exact(1e-2),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build StableAdamW: AdamW with shorter steps where nu lags behind the gradients.

        rms = sqrt(mean(g^2 / max(nu_hat, eps^2)))
        params <- params - learning_rate / max(1, rms) * (adamw's update)

    The mean is over a leaf. The weight decay is shortened, too.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, and its least value in rms, >= 0, in units of the
        gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then 2, where nu_hat is 2.5.

      >>> import jax.numpy as jnp
      >>> tx, param = stable_adamw(1e-3, weight_decay=0.1), jnp.float32(10)
      >>> state = tx.init(param)
      >>> for grad in (1.0, 2.0):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")  # -1e-3 / sqrt(4 / 2.5) * (1.526 / sqrt(2.5) + 1)
      -0.001554

    When: Loss spikes from a second moment that lags behind: its paper finds them in
    CLIP, and uses this in place of gradient clipping. Where gradients do not jump it is
    nearly AdamW.

    Reference: Wortsman et al. 2023 (arXiv:2304.13013), Algorithm 2.

    Differs from the paper, as `adamw` does: eps_root may be given.
    """
    return chain(
        "stable_adamw",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        divide_by_rms(
            precondition(eps=eps, eps_root=eps_root),
            add_decayed_weights(weight_decay, mask),
            eps=eps,
        ),
        scale_by_lr(learning_rate),
    )
