"""The oracles of Adam's descendants: another division, bounds, signs, masks."""

import math

from oracle.arithmetic import abs2, at, average, divide, root, weight


def padam(grads, p, learning_rate, b1=0.9, b2=0.999, partial=0.125, eps=1e-8):
    """Chen et al. 2018, Algorithm 1, uncorrected; eps, not theirs, is in the power."""
    mu, nu, nu_max = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        nu_max = max(nu_max, nu)
        power = root(nu_max, eps, 0.0, t) ** (2 * at(partial, t))
        update = -at(learning_rate, t) * divide(mu, power)
        yield update, (p := p + update)


def adam_atan2(
    grads, p, learning_rate, b1=0.9, b2=0.999, a=4 / math.pi, b=1.0, weight_decay=0.0
):
    """Everett et al. 2024, Adam-atan2: an angle needs no eps."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, g * g, b2, t)
        size = math.sqrt(nu / weight(b2, t))
        direction = at(a, t) * math.atan2(mu / weight(b1, t), at(b, t) * size)
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def diffgrad(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Dubey et al. 2019: friction where g barely changes."""
    mu, nu, before = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        friction = 1 / (1 + math.exp(-abs(before - g)))
        denominator = root(nu / weight(b2, t), eps, eps_root, t)
        direction = friction * divide(mu / weight(b1, t), denominator)
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)
        before = g


def adadelta(grads, p, learning_rate=None, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Zeiler 2012, Algorithm 1, without a rate, which is Optax's; so is L2 decay."""
    power, movement = 0.0, 0.0
    for t, loss_grad in enumerate(grads, 1):
        g = loss_grad + at(weight_decay, t) * p
        power = average(power, abs2(g), rho, t)
        gain = divide(math.sqrt(movement + at(eps, t)), math.sqrt(power + at(eps, t)))
        step = gain * g
        movement = average(movement, abs2(step), rho, t)
        # Without a rate Optax leaves the sign: it climbs, where the paper descends.
        rate = 1.0 if learning_rate is None else at(learning_rate, t)
        update = -rate * step
        yield update, (p := p + update)


def madgrad(grads, p, learning_rate, momentum=0.9, weight_decay=0.0, eps=1e-6):
    """Defazio & Jelassi 2021, Algorithm 1, with momentum = 1 - c.

    The rate is learning_rate + eps, and weight_decay is L2: as in the authors' code and
    in Optax, not in the paper.
    """
    start, total, power = p, 0.0, 0.0
    for t, loss_grad in enumerate(grads, 1):
        g = loss_grad + at(weight_decay, t) * p
        step = (at(learning_rate, t) + at(eps, t)) * math.sqrt(t)
        total += step * g
        power += step * g * g
        z = start - divide(total, math.cbrt(power) + at(eps, t))
        update = (1 - at(momentum, t)) * (z - p)
        yield update, (p := p + update)


def adabound(
    grads, p, learning_rate, b1=0.9, b2=0.999, final_lr=0.1, gamma=1e-3, eps=1e-8
):
    """Luo et al. 2019, Algorithm 2, with Adam's corrections and no 1 / sqrt(t).

    The authors' code has both, but with 1 / (1 - b1^t) inside the bounds, eps before
    the correction, and a final_lr that follows the schedule of learning_rate.
    """
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        size = at(learning_rate, t) / root(nu / weight(b2, t), eps, 0.0, t)
        lower = at(final_lr, t) * (1 - 1 / (at(gamma, t) * t + 1))
        upper = at(final_lr, t) * (1 + 1 / (at(gamma, t) * t))
        update = -min(max(size, lower), upper) * mu / weight(b1, t)
        yield update, (p := p + update)


def adamod(grads, p, learning_rate, b1=0.9, b2=0.999, b3=0.9999, eps=1e-8):
    """Ding et al. 2019, Algorithm 1: no step size above the average of step sizes.

    The authors' code has 1 / (1 - b1^t) inside the minimum.
    """
    mu, nu, mean_size = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        size = at(learning_rate, t) / root(nu / weight(b2, t), eps, 0.0, t)
        mean_size = average(mean_size, size, b3, t)
        update = -min(size, mean_size) * mu / weight(b1, t)
        yield update, (p := p + update)


def signum(grads, p, learning_rate, beta=0.9):
    """Bernstein et al. 2018, Algorithm 2: the sign of the averaged gradient."""
    m = 0.0
    for t, g in enumerate(grads, 1):
        m = average(m, g, beta, t)
        update = -at(learning_rate, t) * divide(m, abs(m))
        yield update, (p := p + update)


def tiger(grads, p, learning_rate, b1=0.965, weight_decay=0.01):
    """Su 2023: Signum with decay, which is Lion with b1 = b2."""
    m = 0.0
    for t, g in enumerate(grads, 1):
        m = average(m, g, b1, t)
        direction = divide(m, abs(m))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def grams(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=1e-2,
):
    """Cao et al. 2024: the size of Adam's step, the sign of the gradient."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        nu_hat = nu / weight(b2, t)
        adam_step = divide(mu / weight(b1, t), root(nu_hat, eps, eps_root, t))
        direction = divide(g, abs(g)) * abs(adam_step)
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def cautious_decay_adamw(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=1e-2,
):
    """Chen et al. 2025, Algorithm 1: p decays only where Adam's step shrinks it."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        nu_hat = nu / weight(b2, t)
        direction = divide(mu / weight(b1, t), root(nu_hat, eps, eps_root, t))
        decay = at(weight_decay, t) * p if direction * p >= 0 else 0.0
        update = -at(learning_rate, t) * (direction + decay)
        yield update, (p := p + update)


ORACLES = {
    "adabound": adabound,
    "adadelta": adadelta,
    "adam_atan2": adam_atan2,
    "adamod": adamod,
    "cautious_decay_adamw": cautious_decay_adamw,
    "diffgrad": diffgrad,
    "grams": grams,
    "madgrad": madgrad,
    "padam": padam,
    "signum": signum,
    "tiger": tiger,
}
