"""What the oracles have in common: schedules, averages, their weights, division."""

import functools
import math


def at(h, t):
    """Return the value of a hyperparameter, constant or scheduled, at step t."""
    return float(h(t - 1)) if callable(h) else h


def average(m, x, b, t):
    """Return b*m + (1-b)*x, the moving average after it has seen x."""
    b_t = at(b, t)
    return b_t * m + (1 - b_t) * x


@functools.cache
def weight(b, t):
    """Return what the average of the constant 1 is after t steps: 1 - b^t."""
    if not callable(b):
        # 1 - b**t as written loses digits where b**t is near 1.
        return -math.expm1(t * math.log(b)) if b > 0 else 1.0
    # Every oracle asks step by step: the weight before is in the cache.
    return average(weight(b, t - 1), 1.0, b, t) if t else 0.0


def abs2(g):
    """Return |g|^2, a real number: g^2 if g is real."""
    return (g * g.conjugate()).real


def divide(x, y):
    """Return x / y, and 0 for 0 / 0: a coordinate never touched stays in place."""
    return 0.0 if x == 0 and y == 0 else x / y


def root(nu, eps, eps_root, t):
    """Return sqrt(nu + eps_root) + eps, Adam's denominator."""
    return math.sqrt(nu + at(eps_root, t)) + at(eps, t)


def look_ahead(mu, g, b1, t):
    """Return Nesterov's mu_hat (Dozat 2016, Alg. 2), with b1 held for the next step."""
    b, w = at(b1, t), weight(b1, t)
    return b * mu / (b * w + (1 - b)) + (1 - b) * g / w
