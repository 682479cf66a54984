"""What came after Adam: AMSGrad, AdaMax, AdaBelief, RAdam, Yogi, Lion.

The arguments are explained in `adam_jax.optimizers`.
"""

import optax

from adam_jax.accumulators import (
    ema,
    infinity_norm,
    lion_average,
    residual_variance,
    yogi_average,
)
from adam_jax.formats import Storage
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.transforms import bias_correct, running_max, scale_by_moments
from adam_jax.updates import (
    Mask,
    add_decayed_weights,
    precondition,
    rectified_precondition,
    scale_by_lr,
)


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
    """Adam that divides by the largest second moment so far.

        nu_max <- max(nu_max, nu_hat)
        params <- params - learning_rate * mu_hat / (sqrt(nu_max) + eps)

    Args beside those of the module:
      bias_correction_mu: whether to correct mu; False in the paper.
      bias_correction_nu: whether to correct nu, before the maximum; False in the
        paper.

    The maximum is kept in float32, whatever nu_dtype. It also gathers the errors of a
    nu that is rounded stochastically: prefer a float32 nu here.

    Reference: Reddi, Kale & Kumar 2018, Algorithm 2.

    Differs from PyTorch, which corrects after the maximum: there `running_max()`
    stands before `bias_correct()`.
    """
    return optax.chain(
        scale_by_moments(b1=b1, b2=b2, mu_dtype=mu_dtype, nu_dtype=nu_dtype),
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
    """Adam with a decaying maximum in place of the second moment.

        nu <- max(b2 * nu, |g| + eps)
        params <- params - learning_rate * mu_hat / nu

    Reference: Kingma & Ba 2014, Algorithm 2.
    """
    return optax.chain(
        scale_by_moments(
            b1=b1,
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
    """AdaMax with weight decay decoupled from the gradient.

    Reference: Kingma & Ba 2014, Algorithm 2; Loshchilov & Hutter 2017, Algorithm 2.
    """
    return optax.chain(
        scale_by_moments(
            b1=b1,
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
    """Adam that divides by how far gradients stray from their average.

        nu <- b2 * nu + (1 - b2) * (g - mu)^2 + eps_root
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat) + eps)

    Reference: Zhuang et al. 2020, Algorithm 2.
    """
    return optax.chain(
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


def radam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    threshold: Hyperparam = exact(5.0),
    *,
    nesterov: bool = False,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam that is momentum until its second moment has seen enough.

    For the rule see `rectified_precondition`.

    Reference: Liu et al. 2020, Algorithm 2.
    """
    return optax.chain(
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=b2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        rectified_precondition(b2, eps, eps_root, threshold),
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
    """Adam whose second moment moves by a step that its own size does not enter.

        nu <- nu - (1 - b2) * sign(nu - g^2) * g^2

    Both moments start at 1e-6.

    Reference: Zaheer et al. 2018, Algorithm 2.
    """
    return optax.chain(
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


def lion(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.99),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-3),
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Step by the sign of a momentum.

        update = sign(b1 * mu + (1 - b1) * g);  mu <- b2 * mu + (1 - b2) * g
        params <- params - learning_rate * (update + weight_decay * params)

    Reference: Chen et al. 2023, Algorithm 2.
    """
    return optax.chain(
        scale_by_moments(b1=lion_average(b1, b2), b2=None, mu_dtype=mu_dtype),
        precondition(),
        optax.scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
