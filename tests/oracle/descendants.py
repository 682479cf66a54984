"""The oracles of Adam's descendants: another order, other gradients, other averages."""

import math

from oracle.arithmetic import abs2, at, average, divide, look_ahead, root, weight


def laprop(grads, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Ziyin, Wang & Ueda 2020, Algorithm 1: g is divided first, averaged afterwards."""
    m, n = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        n = average(n, abs2(g), b2, t)
        divided = divide(g, root(n / weight(b2, t), eps, eps_root, t))
        m = average(m, divided, b1, t)
        update = -at(learning_rate, t) * m / weight(b1, t)
        yield update, (p := p + update)


def adopt(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.9999,
    eps=1e-6,
    nesterov=False,
    use_clipping=True,
    clip_value_fn=lambda count: count**0.25,
):
    """Taniguchi et al. 2024, Algorithm 2; the first gradient only starts nu.

    clip_value_fn is called with t - 1, as in Optax. A complex number is clipped to the
    modulus. The paper has no Nesterov momentum: Optax averages c once more.
    """
    m, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        if t == 1:
            nu = abs2(g)
            update = 0.0 * g
        else:
            c = divide(g, max(math.sqrt(nu), at(eps, t)))
            if use_clipping and abs(c) > clip_value_fn(t - 1):
                c = c / abs(c) * clip_value_fn(t - 1)
            m = average(m, c, b1, t)
            direction = average(m, c, b1, t) if nesterov else m
            update = -at(learning_rate, t) * direction
            nu = average(nu, abs2(g), b2, t)
        yield update, (p := p + update)


def acprop(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-16,
    eps_root=1e-16,
    weight_decay=0.0,
):
    """Zhuang et al. 2021: g, not its mean, over the nu of g - mu of the step before.

    At the first step there is none yet, and Optax's 1 stands there. Optax's nu is of
    g - mu with the mu of the step before, against the paper and its own docstring.
    eps_root adds up inside nu, as in AdaBelief.
    """
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        nu_hat = nu / weight(b2, t - 1) if t > 1 else 1.0
        direction = divide(g, root(nu_hat, eps, 0.0, t))
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g - mu), b2, t) + at(eps_root, t)
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def grokfast_adamw(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    slow_decay=0.98,
    slow_weight=2.0,
    weight_decay=1e-2,
):
    """Lee et al. 2024, Grokfast-EMA before AdamW; their code starts h at g_1, not 0."""
    h, mu, nu = 0.0, 0.0, 0.0
    for t, loss_grad in enumerate(grads, 1):
        h = average(h, loss_grad, slow_decay, t)
        g = loss_grad + at(slow_weight, t) * h
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        nu_hat = nu / weight(b2, t)
        direction = divide(mu / weight(b1, t), root(nu_hat, eps, eps_root, t))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def qhadam(
    grads,
    p,
    learning_rate,
    b1=0.995,
    b2=0.999,
    v1=0.7,
    v2=1.0,
    eps=1e-8,
    eps_root=0.0,
):
    """Ma & Yarats 2019, QHAdam: each moment mixed with what it averages."""
    mu, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        # v weighs the average, 1 - v the newest: average() with the two exchanged.
        mean = average(mu / weight(b1, t), g, v1, t)
        power = average(nu / weight(b2, t), abs2(g), v2, t)
        update = -at(learning_rate, t) * divide(mean, root(power, eps, eps_root, t))
        yield update, (p := p + update)


def ademamix(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    alpha=5.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Pagliardini, Ablin & Grangier 2024, Algorithm 1; the slow mean is uncorrected."""
    fast, slow, nu = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        fast = average(fast, g, b1, t)
        slow = average(slow, g, b3, t)
        nu = average(nu, abs2(g), b2, t)
        mixed = fast / weight(b1, t) + at(alpha, t) * slow
        direction = divide(mixed, root(nu / weight(b2, t), eps, eps_root, t))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def simplified_ademamix(
    grads,
    p,
    learning_rate,
    b1=0.99,
    b2=0.95,
    alpha=0.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """Morwani et al. 2025: a sum b1*m + g, not an average, plus alpha*g."""
    m, nu = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        m = at(b1, t) * m + g
        nu = average(nu, abs2(g), b2, t)
        mixed = m + at(alpha, t) * g
        direction = divide(mixed, root(nu / weight(b2, t), eps, eps_root, t))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def adan(
    grads,
    p,
    learning_rate,
    b1=0.98,
    b2=0.92,
    b3=0.99,
    eps=1e-8,
    eps_root=1e-8,
    weight_decay=0.0,
):
    """Xie et al. 2022, Algorithm 1, with the paper's 1 - beta as b.

    Optax weighs the difference by 1 - b2, where the paper's 1 - beta2 is b2. All three
    averages are corrected, as in the authors' code; the paper starts them at g_0. Decay
    is AdamW's, as in Optax, where the paper divides p by 1 + learning_rate*decay.
    """
    m, v, n, before = 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        difference = g - before if t > 1 else 0.0
        m = average(m, g, b1, t)
        v = average(v, difference, b2, t)
        n = average(n, abs2(g + at(b2, t) * difference), b3, t)
        m_hat, v_hat, n_hat = m / weight(b1, t), v / weight(b2, t), n / weight(b3, t)
        direction = divide(m_hat + at(b2, t) * v_hat, root(n_hat, eps, eps_root, t))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)
        before = g


def adapnm(grads, p, learning_rate, b1=0.9, b2=0.999, b0=1.0, eps=1e-8, eps_root=0.0):
    """Xie et al. 2021, Algorithm 2, with its maximum; b1 and b0 are constants."""
    m, m_before, nu, nu_max = 0.0, 0.0, 0.0, 0.0
    noise = math.hypot(1 + b0, b0)
    for t, g in enumerate(grads, 1):
        # Two momenta take turns: the m of step t goes on from the m of step t - 2.
        m, m_before = average(m_before, g, b1**2, t), m
        nu = average(nu, abs2(g), b2, t)
        nu_max = max(nu_max, nu)
        mean = ((1 + b0) * m - b0 * m_before) / weight(b1, t)
        direction = divide(mean, root(nu_max / weight(b2, t), eps, eps_root, t))
        update = -at(learning_rate, t) / noise * direction
        yield update, (p := p + update)


def aggmo(grads, p, learning_rate, decays=(0.0, 0.9, 0.99)):
    """Lucas et al. 2019: the mean of several velocities v = decay*v + g."""
    velocities = [0.0] * len(decays)
    for t, g in enumerate(grads, 1):
        velocities = [b * v + g for b, v in zip(decays, velocities, strict=True)]
        update = -at(learning_rate, t) / len(decays) * sum(velocities)
        yield update, (p := p + update)


def optimistic_adam(
    grads,
    p,
    learning_rate,
    optimism=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=True,
):
    """Daskalakis et al. 2018, Algorithm 1: lr*r + optimism*(r - r_before), r of Adam.

    As in Optax, r_before is r at the first step, 0 in the paper; and Nesterov's mean,
    which the paper does not have, is the default.
    """
    mu, nu, before = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1, t)
        nu = average(nu, abs2(g), b2, t)
        mu_hat = look_ahead(mu, g, b1, t) if nesterov else mu / weight(b1, t)
        r = divide(mu_hat, root(nu / weight(b2, t), eps, eps_root, t))
        change = r - before if t > 1 else 0.0
        step = at(learning_rate, t)
        ahead = step if optimism is None else at(optimism, t)
        update = -(step * r + ahead * change)
        yield update, (p := p + update)
        before = r


ORACLES = {
    "acprop": acprop,
    "adan": adan,
    "adapnm": adapnm,
    "ademamix": ademamix,
    "adopt": adopt,
    "aggmo": aggmo,
    "grokfast_adamw": grokfast_adamw,
    "laprop": laprop,
    "optimistic_adam": optimistic_adam,
    "qhadam": qhadam,
    "simplified_ademamix": simplified_ademamix,
}
