"""The oracle of optimizers that look at whole arrays: plain NumPy, in float64.

One generator an optimizer, transcribed from its paper. Each takes all the gradients of
one leaf and the leaf's initial value, and yields `(update, p)` at every step, where
`p_t = p_{t-1} + update_t`. Where a method takes norms over the whole tree, the leaf
is the tree. Hyperparameters that are numbers may be schedules: functions of the step
count before it is incremented, so of 0 at the first step. `t` counts from 1, as in the
papers.
"""

import numpy as np

from oracle.arithmetic import at
from oracle.array_arithmetic import Adam, Average, Factored, divide, norm, rms
from oracle.iterates import ITERATE_ORACLES
from oracle.matrices import MATRIX_ORACLES


def mars_adamw(
    grads,
    p,
    learning_rate,
    b1=0.95,
    b2=0.99,
    eps=1e-8,
    eps_root=0.0,
    gamma=0.025,
    weight_decay=1e-2,
):
    """Yuan et al. 2024, Algorithm 2 on g_t - g_{t-1} of two batches (MARS-approx)."""
    adam, before = Adam(b1, b2, eps, eps_root), None
    for t, g in enumerate(grads, 1):
        change = 0.0 if before is None else g - before
        b = at(b1, t)
        c = g + at(gamma, t) * b / (1 - b) * change
        before = g
        c = c / max(1.0, norm(c))
        direction = adam.direction(c, t) + at(weight_decay, t) * p
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def stable_spam(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    norm_b1=0.7,
    norm_b2=0.9,
    clip_decay=0.999,
    reset_every=1000,
):
    """Huang et al. 2025: AdaClip, AdaGN and a reset of the moments before Adam.

    The authors' code resets one step earlier, at steps that are multiples of
    reset_every; here reset_every steps lie between two resets from the start on.
    """
    adam = Adam(b1, b2, eps, eps_root)
    largest = Average(clip_decay)
    mean, square = Average(norm_b1), Average(norm_b2)
    for t, g in enumerate(grads, 1):
        if (t - 1) % reset_every == 0:
            adam = Adam(b1, b2, eps, eps_root)
        top = np.max(np.abs(g))
        largest.add(top, t)
        g = np.where(np.abs(g) > largest.hat, divide(g, top) * largest.hat, g)
        n = norm(g)
        mean.add(n, t)
        square.add(n * n, t)
        g = divide(g, n) * mean.hat / (np.sqrt(square.hat) + 1e-8)
        update = -at(learning_rate, t) * adam.direction(g, t)
        yield update, (p := p + update)


def stable_adamw(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=1e-2,
):
    """Wortsman et al. 2023, Algorithm 2: AdamW with Adafactor's clip of the step."""
    adam = Adam(b1, b2, eps, eps_root)
    for t, g in enumerate(grads, 1):
        direction = adam.direction(g, t)
        floor = at(eps, t) ** 2
        size = rms(divide(g, np.sqrt(np.maximum(adam.nu.hat, floor))))
        step_size = at(learning_rate, t) / max(1.0, size)
        update = -step_size * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def trust_ratio(direction, p, coefficient=1.0, eps=0.0):
    """Return coefficient * ||p|| / (||direction|| + eps), and 1 if a norm is 0."""
    if norm(p) == 0 or norm(direction) == 0:
        return 1.0
    return coefficient * norm(p) / (norm(direction) + eps)


def lamb(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
):
    """You et al. 2020, Algorithm 2, with phi the identity."""
    adam = Adam(b1, b2, eps, eps_root)
    for t, g in enumerate(grads, 1):
        direction = adam.direction(g, t) + at(weight_decay, t) * p
        update = -at(learning_rate, t) * trust_ratio(direction, p) * direction
        yield update, (p := p + update)


def lars(
    grads,
    p,
    learning_rate,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
):
    """You, Gitman & Ginsburg 2017, Algorithm 1: the momentum is of steps."""
    m = 0.0
    for t, g in enumerate(grads, 1):
        direction = g + at(weight_decay, t) * p
        ratio = trust_ratio(direction, p, at(trust_coefficient, t), at(eps, t))
        step = -at(learning_rate, t) * ratio * direction
        m = at(momentum, t) * m + step
        update = at(momentum, t) * m + step if nesterov else m
        yield update, (p := p + update)


def cautious_adamw(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=1e-2,
):
    """Liang et al. 2024, Algorithm 2: only where the update agrees with g."""
    adam = Adam(b1, b2, eps, eps_root)
    for t, g in enumerate(grads, 1):
        direction = adam.direction(g, t)
        mask = (direction * g > 0).astype(float)
        direction = direction * mask * mask.size / (mask.sum() + 1)
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def adafactor(
    grads,
    p,
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
):
    """Shazeer & Stern 2018, Algorithms 4 and 5; rate and decay as in Optax.

    The decay is not multiplied by the learning rate, as in Optax.
    """

    def decay(count):
        return 1 - (count - decay_offset + 1.0) ** -decay_rate

    smallest = min_dim_size_to_factor if factored else np.inf
    nu, mu = Factored(decay, p.shape, smallest), Average(momentum)
    for t, g in enumerate(grads, 1):
        direction = g / np.sqrt(nu.add(g * g + at(eps, t), t))
        if clipping_threshold is not None:
            limit = at(clipping_threshold, t)
            direction = direction / max(1.0, rms(direction) / limit)
        if learning_rate is not None:
            direction = at(learning_rate, t) * direction
        if multiply_by_parameter_scale:
            direction = direction * max(rms(p), 1e-3)
        if momentum is not None:
            direction = mu.add(direction, t)
        if weight_decay_rate is not None:
            direction = direction + at(weight_decay_rate, t) * p
        update = -direction
        yield update, (p := p + update)


def adam_mini(
    grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, axes=-1
):
    """Zhang et al. 2024, Algorithm 1: one nu a block, the mean of g^2 over axes."""
    mu, nu = Average(b1), Average(b2)
    for t, g in enumerate(grads, 1):
        mu.add(g, t)
        square = g * g
        nu.add(np.mean(square, axis=axes, keepdims=True) if g.ndim else square, t)
        scale = np.sqrt(nu.hat + at(eps_root, t)) + at(eps, t)
        update = -at(learning_rate, t) * divide(mu.hat, scale)
        yield update, (p := p + update)


def rowwise_adagrad(grads, p, learning_rate, initial_accumulator_value=0.0, eps=1e-8):
    """AdaGrad with one sum a row: FBGEMM's; the sum is of means over the last axis."""
    total = initial_accumulator_value
    for t, g in enumerate(grads, 1):
        square = g * g
        total = total + (np.mean(square, axis=-1, keepdims=True) if g.ndim else square)
        direction = divide(g, np.sqrt(total) + at(eps, t))
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def sm3(grads, p, learning_rate, momentum=0.9):
    """Anil et al. 2019, SM3-II; the momentum is an average, and eps 1e-8 in the root.

    A vector has one accumulator an element, so AdaGrad's; so has a scalar.
    """
    nu, m = [0.0] * max(p.ndim, 1), Average(momentum)
    for t, g in enumerate(grads, 1):
        least = nu[0]
        for other in nu[1:]:
            least = np.minimum(least, other)
        total = least + g * g
        for axis in range(len(nu)):
            rest = tuple(i for i in range(p.ndim) if i != axis)
            nu[axis] = np.max(total, axis=rest, keepdims=True) if rest else total
        m.add(np.where(total > 0, g / np.sqrt(total + 1e-8), 0.0), t)
        update = -at(learning_rate, t) * m.value
        yield update, (p := p + update)


def novograd(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.25,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Ginsburg et al. 2019, Algorithm 1: one nu a leaf, which starts at ||g||^2."""
    m, nu = 0.0, None
    for t, g in enumerate(grads, 1):
        square = norm(g) ** 2
        b = at(b2, t)
        nu = square if nu is None else b * nu + (1 - b) * square
        scale = np.sqrt(nu + at(eps_root, t)) + at(eps, t)
        m = at(b1, t) * m + divide(g, scale) + at(weight_decay, t) * p
        update = -at(learning_rate, t) * m
        yield update, (p := p + update)


def came(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    eps=1e-30,
    eps_confidence=1e-16,
    clipping_threshold=1.0,
    min_dim_size_to_factor=128,
    weight_decay=0.0,
):
    """Luo et al. 2023, Algorithm 2: Adafactor's step over the size of its instability.

    The paper defines it for matrices. In other leaves both second moments, v and S,
    are kept element by element.
    """
    v = Factored(b2, p.shape, min_dim_size_to_factor)
    instability = Factored(b3, p.shape, min_dim_size_to_factor)
    m = Average(b1)
    for t, g in enumerate(grads, 1):
        u = g / np.sqrt(v.add(g * g + at(eps, t), t))
        u = u / max(1.0, rms(u) / at(clipping_threshold, t))
        m.add(u, t)
        s = instability.add((u - m.value) ** 2 + at(eps_confidence, t), t)
        direction = m.value / np.sqrt(s) + at(weight_decay, t) * p
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


ARRAY_ORACLES = {
    "adafactor": adafactor,
    "adam_mini": adam_mini,
    "came": came,
    "cautious_adamw": cautious_adamw,
    "lamb": lamb,
    "lars": lars,
    "mars_adamw": mars_adamw,
    "novograd": novograd,
    "rowwise_adagrad": rowwise_adagrad,
    "sm3": sm3,
    "stable_adamw": stable_adamw,
    "stable_spam": stable_spam,
    **ITERATE_ORACLES,
    **MATRIX_ORACLES,
}
