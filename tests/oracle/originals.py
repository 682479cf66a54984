"""The oracles of Adam, of what came before it, and of its first variants."""

import math
from functools import partial

from oracle.arithmetic import abs2, at, average, divide, look_ahead, root, weight


def sgd(grads, p, learning_rate, momentum=None, nesterov=False):
    """Heavy ball: m = momentum*m + g (Polyak 1964; Sutskever et al. 2013)."""
    m = 0.0
    for t, g in enumerate(grads, 1):
        direction = g
        if momentum is not None:
            m = at(momentum, t) * m + g
            direction = at(momentum, t) * m + g if nesterov else m
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def ema(grads, p, learning_rate, decay=0.9, debias=True):
    """Momentum as an average: Adam's mu alone, no second moment."""
    mu = 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, decay, t)
        mu_hat = mu / weight(decay, t) if debias else mu
        update = -at(learning_rate, t) * mu_hat
        yield update, (p := p + update)


def adagrad(grads, p, learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    """Duchi, Hazan & Singer 2011: g / sqrt(sum of g^2); Optax's eps is in the root."""
    total = initial_accumulator_value
    for t, g in enumerate(grads, 1):
        total += abs2(g)
        update = -at(learning_rate, t) * divide(g, math.sqrt(total + at(eps, t)))
        yield update, (p := p + update)


def rmsprop(
    grads,
    p,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
):
    """Tieleman & Hinton 2012, lecture 6.5; centred: Graves 2013, equations 38 to 41."""
    mu, nu, m = 0.0, initial_scale, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, decay, t)
        nu = average(nu, abs2(g), decay, t)
        w = weight(decay, t) if bias_correction else 1.0
        # A variance is never negative; its rounding error may be.
        power = max(nu / w - abs2(mu / w), 0.0) if centered else nu / w
        scale = root(power, 0.0, eps, t) if eps_in_sqrt else root(power, eps, 0.0, t)
        update = -at(learning_rate, t) * divide(g, scale)
        if momentum is not None:
            # As in Graves, the momentum is of steps, learning rate included.
            step = update
            m = at(momentum, t) * m + step
            update = at(momentum, t) * m + step if nesterov else m
        yield update, (p := p + update)


def adam(
    grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False
):
    """Kingma & Ba 2014, Algorithm 1; nesterov: Dozat 2016, Algorithm 2."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        mu_hat = look_ahead(mu, g, b1, t) if nesterov else mu / weight(b1, t)
        nu_hat = nu / weight(b2, t)
        direction = divide(mu_hat, root(nu_hat, eps, eps_root, t))
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def adamw(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=1e-4,
    nesterov=False,
):
    """Loshchilov & Hutter 2017, Algorithm 2, with learning_rate = eta_t, alpha = 1."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        mu_hat = look_ahead(mu, g, b1, t) if nesterov else mu / weight(b1, t)
        nu_hat = nu / weight(b2, t)
        direction = divide(mu_hat, root(nu_hat, eps, eps_root, t))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def adam_l2(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    """Adam on g + weight_decay*p: L2 as Loshchilov & Hutter 2017 warn against."""
    mu, nu = 0.0, 0.0
    for t, loss_grad in enumerate(grads, 1):
        g = loss_grad + at(weight_decay, t) * p
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        mu_hat = mu / weight(b1, t)
        nu_hat = nu / weight(b2, t)
        direction = divide(mu_hat, root(nu_hat, eps, 0.0, t))
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def simplified_adam(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Kingma & Ba 2014, Algorithm 1 without its two lines of bias correction."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        update = -at(learning_rate, t) * divide(mu, root(nu, eps, eps_root, t))
        yield update, (p := p + update)


def adam_eps_hat(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2014, end of section 2: the correction moved to the step size."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        step_size = at(learning_rate, t) * math.sqrt(weight(b2, t)) / weight(b1, t)
        update = -step_size * divide(mu, math.sqrt(nu) + at(eps, t))
        yield update, (p := p + update)


def amsgrad(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction_mu=True,
    bias_correction_nu=True,
):
    """Reddi, Kale & Kumar 2018, Algorithm 2: both corrections off. Optax corrects."""
    mu, nu, nu_max = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        mu_hat = mu / weight(b1, t) if bias_correction_mu else mu
        nu_max = max(nu_max, nu / weight(b2, t) if bias_correction_nu else nu)
        direction = divide(mu_hat, root(nu_max, eps, eps_root, t))
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def amsgrad_raw(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """AMSGrad as PyTorch has it: the maximum of the raw nu, corrected afterwards."""
    mu, nu, nu_max = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        nu_max = max(nu_max, nu)
        mu_hat = mu / weight(b1, t)
        direction = divide(mu_hat, root(nu_max / weight(b2, t), eps, eps_root, t))
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def adamaxw(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    """Kingma & Ba 2014, Algorithm 2; Optax adds eps to |g|, the paper has none."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = max(at(b2, t) * nu, abs(g) + at(eps, t))
        direction = divide(mu / weight(b1, t), nu)
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def adabelief(
    grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False
):
    """Zhuang et al. 2020, Algorithm 2: nu of g - mu; eps_root adds up inside nu."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g - mu), b2, t) + at(eps_root, t)
        mu_hat = look_ahead(mu, g, b1, t) if nesterov else mu / weight(b1, t)
        nu_hat = nu / weight(b2, t)
        update = -at(learning_rate, t) * divide(mu_hat, root(nu_hat, eps, 0.0, t))
        yield update, (p := p + update)


def radam(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    threshold=5.0,
    nesterov=False,
):
    """Liu et al. 2020, Algorithm 2 (threshold 4 there); b2 must be a constant."""
    mu, nu = 0.0, 0.0
    ro_inf = 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        mu_hat = look_ahead(mu, g, b1, t) if nesterov else mu / weight(b1, t)
        nu_hat = nu / weight(b2, t)
        ro = ro_inf - 2 * t * b2**t / weight(b2, t)
        direction = mu_hat
        if ro >= threshold:
            r2 = (ro - 4) * (ro - 2) * ro_inf / ((ro_inf - 4) * (ro_inf - 2) * ro)
            direction = math.sqrt(r2) * divide(mu_hat, root(nu_hat, eps, eps_root, t))
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def yogi(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-3):
    """Zaheer et al. 2018, Algorithm 2; Optax starts mu and nu at 1e-6, and corrects."""
    mu, nu = 1e-6, 1e-6
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        sign = (nu > abs2(g)) - (nu < abs2(g))
        nu = nu - (1 - at(b2, t)) * sign * abs2(g)
        mu_hat = mu / weight(b1, t)
        nu_hat = nu / weight(b2, t)
        update = -at(learning_rate, t) * divide(mu_hat, root(nu_hat, eps, 0.0, t))
        yield update, (p := p + update)


def lion(grads, p, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    """Chen et al. 2023, Algorithm 2; the sign of a complex number is z / |z|."""
    mu = 0.0
    for t, g in enumerate(grads, 1):
        mixed = average(mu, g, b1, t)
        direction = divide(mixed, abs(mixed))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        mu = average(mu, g, b2, t)
        yield update, (p := p + update)


ORACLES = {
    "adabelief": adabelief,
    "adagrad": adagrad,
    "adam": adam,
    "adam_eps_hat": adam_eps_hat,
    "adam_l2": adam_l2,
    "adamax": partial(adamaxw, weight_decay=0.0),
    "adamaxw": adamaxw,
    "adamw": adamw,
    "amsgrad": amsgrad,
    "amsgrad_raw": amsgrad_raw,
    "ema": ema,
    "lion": lion,
    "nadam": partial(adam, nesterov=True),
    "nadamw": partial(adamw, nesterov=True),
    "radam": radam,
    "rmsprop": rmsprop,
    "sgd": sgd,
    "simplified_adam": simplified_adam,
    "yogi": yogi,
}
