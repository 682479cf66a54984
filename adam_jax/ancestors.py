"""What Adam came from: SGD, AdaGrad, RMSProp.

The arguments are explained in `adam_jax.optimizers`.
"""

import optax

from adam_jax.accumulators import ema, total
from adam_jax.formats import Storage
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.transforms import bias_correct, center, scale_by_moments
from adam_jax.updates import (
    cast_to_params,
    precondition,
    scale_by_lr,
    scale_by_trace,
)


def sgd(
    learning_rate: Hyperparam,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    accumulator_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Descend the gradient, with heavy-ball momentum if asked for.

        trace <- momentum * trace + g
        params <- params - learning_rate * trace

    Reference: Robbins & Monro 1951; Sutskever et al. 2013 for nesterov.
    """
    if momentum is None:
        return optax.chain(scale_by_lr(learning_rate))
    return optax.chain(
        scale_by_trace(check_decay("momentum", momentum), nesterov, accumulator_dtype),
        scale_by_lr(learning_rate),
    )


def adagrad(
    learning_rate: Hyperparam,
    initial_accumulator_value: Hyperparam = exact(0.1),
    eps: Hyperparam = exact(1e-7),
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Divide by the root of the sum of all squared gradients.

        nu <- nu + g^2
        params <- params - learning_rate * g / sqrt(nu + eps)

    Reference: Duchi, Hazan & Singer 2011, Figure 1.

    Differs from PyTorch, which starts nu at 0 and adds eps outside the root.
    """
    return optax.chain(
        scale_by_moments(
            b1=None, b2=total(initial_accumulator_value), nu_dtype=nu_dtype
        ),
        precondition(eps=0.0, eps_root=eps),
        scale_by_lr(learning_rate),
    )


def rmsprop(
    learning_rate: Hyperparam,
    decay: Hyperparam = exact(0.9),
    eps: Hyperparam = exact(1e-8),
    initial_scale: Hyperparam = exact(0.0),
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Divide by the root of a running average of the squared gradients.

        nu <- decay * nu + (1 - decay) * g^2
        params <- params - learning_rate * g / sqrt(nu + eps)

    Args:
      learning_rate: see the module.
      decay: decay rate of nu, in [0, 1).
      eps: see the module.
      initial_scale: nu before the first gradient.
      eps_in_sqrt: whether eps is added inside the root, or to it.
      centered: divide by the standard deviation: subtract mu^2 from nu.
      momentum: decay of a trace of the scaled updates.
      nesterov: whether that trace looks ahead.
      bias_correction: correct nu (and mu, if centered) as Adam does.
      mu_dtype: how mu, if centered, and the trace are stored.
      nu_dtype: see the module.

    Reference: Tieleman & Hinton 2012, lecture 6e; centered: Graves 2013.

    Differs from PyTorch, whose defaults are decay 0.99 and `eps_in_sqrt=False`.
    """
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    mean = ema(decay) if centered else None
    stages = [
        scale_by_moments(
            b1=mean,
            b2=ema(decay, initial=initial_scale),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        )
    ]
    if bias_correction:
        stages += [bias_correct()]
    if centered:
        stages += [center()]
    stages += [precondition(eps=outside, eps_root=inside), scale_by_lr(learning_rate)]
    if momentum is not None:
        heavy_ball = scale_by_trace(
            check_decay("momentum", momentum), nesterov, mu_dtype
        )
        stages += [heavy_ball, cast_to_params()]
    return optax.chain(*stages)
