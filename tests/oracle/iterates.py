"""The oracle of optimizers that keep iterates besides p, or measure the way gone."""

import math

import numpy as np

from oracle.arithmetic import at
from oracle.array_arithmetic import Adam, Average, divide, norm


def schedule_free_adamw(
    grads,
    p,
    learning_rate=0.0025,
    warmup_steps=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    weight_lr_power=2.0,
):
    """Defazio et al. 2024, Algorithm 1, as Optax has it; p is y, and moves to y.

    Optax weighs z_t with the learning rate of the next step, count t, though z moves
    with that of count t-1: they differ during a warm-up. b1 must be a constant, since
    x is computed back from y and z.
    """

    def rate(count):
        peak = learning_rate(count) if callable(learning_rate) else learning_rate
        return peak * min(1.0, count / warmup_steps) if warmup_steps else peak

    z, nu = p, Average(b2)
    highest, total = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        nu.add(g * g, t)
        direction = divide(g, np.sqrt(nu.hat) + at(eps, t))
        direction = direction + at(weight_decay, t) * p
        x = (p - (1 - b1) * z) / b1
        z = z - rate(t - 1) * direction
        highest = max(highest, rate(t))
        total += highest**weight_lr_power
        c = highest**weight_lr_power / total if total else 0.0
        x = (1 - c) * x + c * z
        update = b1 * x + (1 - b1) * z - p
        yield update, (p := p + update)


def schedule_free_radam(
    grads,
    p,
    learning_rate=0.0025,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    weight_lr_power=2.0,
    silent=True,
):
    """Defazio et al. 2024, Algorithm 1; RAdam's rate: Liu et al. 2020, Algorithm 2.

    As the authors' RAdamScheduleFree has it: the rectifier is part of the learning
    rate, that of the weights too; before it is defined, nothing moves if silent, and
    else z takes a step along g. b1 and b2 must be constants.
    """
    z, nu = p, Average(b2)
    highest, total = 0.0, 0.0
    rho_inf = 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        nu.add(g * g, t)
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        if rho > 4:
            top = (rho - 4) * (rho - 2) * rho_inf
            rate = math.sqrt(top / ((rho_inf - 4) * (rho_inf - 2) * rho))
            direction = divide(g, np.sqrt(nu.hat) + at(eps, t))
        else:
            rate, direction = 0.0 if silent else 1.0, g
        rate = rate * at(learning_rate, t)
        x = (p - (1 - b1) * z) / b1
        z = z - rate * (direction + at(weight_decay, t) * p)
        highest = max(highest, rate)
        total += highest**weight_lr_power
        c = highest**weight_lr_power / total if total else 0.0
        x = (1 - c) * x + c * z
        update = b1 * x + (1 - b1) * z - p
        yield update, (p := p + update)


def lookahead(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    sync_period=6,
    slow_step_size=0.5,
):
    """Zhang et al. 2019, Algorithm 1, around Adam; p is the fast weights."""
    adam, slow = Adam(b1, b2, eps, eps_root), p
    for t, g in enumerate(grads, 1):
        fast = p - at(learning_rate, t) * adam.direction(g, t)
        if t % sync_period == 0:
            slow = slow + at(slow_step_size, t) * (fast - slow)
            fast = slow
        update = fast - p
        yield update, (p := fast)


def prodigy(
    grads,
    p,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    estim_lr0=1e-6,
    estim_lr_coef=1.0,
    weight_decay=0.0,
    safeguard_warmup=False,
):
    """Mishchenko & Defazio 2023, Algorithm 4 (Prodigy for Adam), as Optax has it.

    Unlike the paper, mu and nu are corrected, through the step size; s and r hold
    learning rates; and d multiplies eps after it has been renewed.
    """
    b1, b2 = betas
    b3 = math.sqrt(b2) if beta3 is None else beta3
    start, d = p, estim_lr0
    mu, nu, s, r = 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        size = d * at(learning_rate, t) * math.sqrt(1 - b2**t) / (1 - b1**t)
        mu = b1 * mu + (1 - b1) * d * g
        nu = b2 * nu + (1 - b2) * (d * g) ** 2
        s = b3 * s + (d if safeguard_warmup else size) * d / estim_lr0 * g
        r = b3 * r + d / estim_lr0 * size * np.sum(g * (start - p))
        # Gradients that were all 0 leave d as it is; Optax turns NaN.
        d = max(d, estim_lr_coef * float(divide(r, np.sum(np.abs(s)))))
        direction = divide(mu, np.sqrt(nu) + d * eps) + weight_decay * p
        update = -size * direction
        yield update, (p := p + update)


def adam_hyperball(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Wen et al. 2025, Hyperball around Adam (AdamH): ||p|| never changes.

    p <- R n(p - lr R n(u)), where R = ||p_0|| and n(x) = x / ||x||. Vectors and scalars
    take Adam's own step: the authors apply it to matrices.
    """
    adam, radius = Adam(b1, b2, eps, eps_root), norm(p)
    for t, g in enumerate(grads, 1):
        direction = adam.direction(g, t)
        if p.ndim < 2:
            moved = p - at(learning_rate, t) * direction
        else:
            unit = divide(direction, norm(direction))
            moved = p - at(learning_rate, t) * radius * unit
            moved = radius * divide(moved, norm(moved))
        update = moved - p
        yield update, (p := moved)


def swats(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-9,
    eps_root=0.0,
    tolerance=1e-9,
):
    """Keskar & Socher 2017, Algorithm 1; the leaf is the whole tree.

    Two departures. eps is added to the corrected root. And gamma and lambda are
    multiples of the learning rate, which is a constant in the paper: so a schedule
    goes on to govern SGD. b2 must be a constant.
    """
    adam, rate, rate_now = Adam(b1, b2, eps, eps_root), 0.0, None
    v = 0.0
    for t, g in enumerate(grads, 1):
        lr = at(learning_rate, t)
        if rate_now is not None:
            v = at(b1, t) * v + g
            update = -lr * rate_now * (1 - at(b1, t)) * v
            yield update, (p := p + update)
            continue
        direction = adam.direction(g, t)
        update = -lr * direction
        yield update, (p := p + update)
        along = np.sum(direction * g)
        if along != 0:
            gamma = np.sum(direction * direction) / along
            rate = b2 * rate + (1 - b2) * gamma
            hat = rate / (1 - b2**t)
            if t > 1 and hat > 0 and lr * abs(hat - gamma) < at(tolerance, t):
                rate_now = hat


ITERATE_ORACLES = {
    "adam_hyperball": adam_hyperball,
    "lookahead": lookahead,
    "prodigy": prodigy,
    "schedule_free_adamw": schedule_free_adamw,
    "schedule_free_radam": schedule_free_radam,
    "swats": swats,
}
