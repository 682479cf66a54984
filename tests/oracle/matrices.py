"""The oracle of optimizers that see a gradient as a matrix: in NumPy, in float64."""

import math

import numpy as np

from oracle.arithmetic import at
from oracle.array_arithmetic import Adam, Average, divide, norm

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(x, eps, steps=5, coefficients=COEFFICIENTS):
    """Return x with singular values near 1, by Newton-Schulz (Jordan et al. 2024)."""
    if x.shape[0] > x.shape[1]:
        return orthogonalised(x.T, eps, steps, coefficients).T
    x = x / (norm(x) + eps)
    for a, b, c in np.broadcast_to(coefficients, (steps, 3)):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def adamw(
    grads, p, learning_rate, b1, b2, eps, eps_root=0.0, weight_decay=0.0, nesterov=False
):
    """AdamW, for the leaves that are no matrices; b1 must be a constant if nesterov."""
    adam = Adam(b1, b2, eps, eps_root)
    for t, g in enumerate(grads, 1):
        direction = adam.direction(g, t)
        if nesterov:
            mu_hat = b1 * adam.mu.value / (1 - b1 ** (t + 1))
            mu_hat = mu_hat + (1 - b1) * g / (1 - b1**t)
            direction = divide(mu_hat, adam.denominator(t))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def muon(
    grads,
    p,
    learning_rate,
    ns_coeffs=COEFFICIENTS,
    ns_steps=5,
    beta=0.95,
    eps=1e-8,
    weight_decay=0.0,
    nesterov=True,
    adaptive=False,
    adam_b1=0.9,
    adam_b2=0.999,
    adam_eps_root=0.0,
    adam_weight_decay=0.0,
    adam_learning_rate=None,
    consistent_rms=None,
):
    """Jordan et al. 2024, as Optax has it; consistent_rms: Liu et al. 2025, eq. 4.

    Rows are inputs and columns outputs. Other leaves go by AdamW, with Nesterov's
    momentum if nesterov.
    """
    if p.ndim != 2:
        rate = learning_rate if adam_learning_rate is None else adam_learning_rate
        moments = adam_b1, adam_b2, eps, adam_eps_root
        yield from adamw(grads, p, rate, *moments, adam_weight_decay, nesterov)
        return
    mu = Average(beta)
    rows, columns = p.shape
    for t, g in enumerate(grads, 1):
        mu.add(g, t)
        x = mu.hat
        if nesterov:
            x = beta * mu.value / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        direction = orthogonalised(x, at(eps, t), ns_steps, ns_coeffs)
        if adaptive:
            direction = np.sum(x * direction) * direction
        if consistent_rms is None:
            scale = math.sqrt(max(1.0, columns / rows))
        else:
            scale = math.sqrt(max(rows, columns)) * at(consistent_rms, t)
        direction = scale * direction + at(weight_decay, t) * p
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def normuon(
    grads,
    p,
    learning_rate,
    beta=0.95,
    b2=0.95,
    eps=1e-8,
    ns_steps=5,
    nesterov=False,
    axes=-1,
    weight_decay=0.0,
    adam_b1=0.9,
    adam_b2=0.999,
):
    """Li et al. 2025 (NorMuon), Algorithm 1: one nu a row of the orthogonalised mu.

    nu is not corrected: the scaling to an RMS of 0.2 takes any factor out. The paper
    has no nesterov. Other leaves go by AdamW.
    """
    if p.ndim != 2:
        moments = adam_b1, adam_b2, eps
        yield from adamw(grads, p, learning_rate, *moments, weight_decay=weight_decay)
        return
    mu, nu = Average(beta), Average(b2)
    for t, g in enumerate(grads, 1):
        b = at(beta, t)
        x = mu.add(g, t)
        if nesterov:
            x = b * x + (1 - b) * g
        direction = orthogonalised(x, at(eps, t), ns_steps)
        nu.add(np.mean(direction**2, axis=axes, keepdims=True), t)
        direction = divide(direction, np.sqrt(nu.value) + at(eps, t))
        direction = 0.2 * math.sqrt(p.size) * divide(direction, norm(direction))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def adamuon(
    grads,
    p,
    learning_rate,
    beta=0.95,
    eps=1e-8,
    ns_steps=5,
    nesterov=False,
    weight_decay=0.0,
    adam_b1=0.9,
    adam_b2=0.999,
):
    """Si, Zhang & Shen 2025 (AdaMuon), Algorithm 1 of arXiv version 3.

    One decay for both moments, and the sign of the momentum is orthogonalised. nu is
    not corrected, as in NorMuon. The paper has no nesterov, the authors' code has.
    Other leaves go by AdamW.
    """
    if p.ndim != 2:
        moments = adam_b1, adam_b2, eps
        yield from adamw(grads, p, learning_rate, *moments, weight_decay=weight_decay)
        return
    mu, nu = Average(beta), Average(beta)
    for t, g in enumerate(grads, 1):
        b = at(beta, t)
        x = mu.add(g, t)
        if nesterov:
            x = b * x + (1 - b) * g
        direction = orthogonalised(np.sign(x), at(eps, t), ns_steps)
        nu.add(direction**2, t)
        direction = divide(direction, np.sqrt(nu.value) + at(eps, t))
        direction = 0.2 * math.sqrt(p.size) * divide(direction, norm(direction))
        update = -at(learning_rate, t) * (direction + at(weight_decay, t) * p)
        yield update, (p := p + update)


def gram(x, axis):
    """Return x contracted with itself over all axes but one."""
    rest = [i for i in range(x.ndim) if i != axis]
    return np.tensordot(x, x, axes=(rest, rest))


def times(x, matrix, axis):
    """Return x with matrix applied to one of its axes: matrix @ x for axis 0."""
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def soap(
    grads,
    p,
    learning_rate,
    b1=0.95,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_size=10000,
    sort=False,
):
    """Vyas et al. 2024 (SOAP), Algorithms 3 and 4; vectors go by AdamW.

    As in the authors' code, the first step only starts the statistics and moves
    nothing, and both moments are corrected. eps is added to the corrected root, and
    the decay is of p before the step. Their code also sorts the eigenvectors, and nu
    with them, before each QR (sort): Algorithm 4 does not.
    """
    axes = [i for i, n in enumerate(p.shape) if p.ndim >= 2 and n <= max_size]
    mu, nu = Average(b1), Average(b2)
    outer = {i: Average(b2) for i in axes}
    bases = {}
    for t, g in enumerate(grads):
        if t == 0:
            for i in axes:
                outer[i].add(gram(g, i), 1)
                bases[i] = np.linalg.eigh(outer[i].value)[1][:, ::-1]
            yield np.zeros_like(p), p
            continue
        mu.add(g, t + 1)
        turned, turned_mu = g, mu.hat
        for i in axes:
            turned = times(turned, bases[i].T, i)
            turned_mu = times(turned_mu, bases[i].T, i)
        nu.add(turned**2, t + 1)
        direction = divide(turned_mu, np.sqrt(nu.hat) + at(eps, t + 1))
        for i in axes:
            direction = times(direction, bases[i], i)
        direction = direction + at(weight_decay, t + 1) * p
        update = -at(learning_rate, t + 1) * direction
        yield update, (p := p + update)
        for i in axes:
            outer[i].add(gram(g, i), t + 1)
            if t % precondition_frequency == 0:
                if sort:
                    sizes = np.diag(bases[i].T @ outer[i].value @ bases[i])
                    order = np.argsort(-sizes, kind="stable")
                    bases[i] = bases[i][:, order]
                    nu.value = np.take(nu.value, order, axis=i)
                bases[i] = np.linalg.qr(outer[i].value @ bases[i])[0]


def with_signs(basis):
    """Return the columns of basis, the largest entry of each made positive."""
    largest = np.argmax(np.abs(basis), axis=0)
    return basis * np.sign(basis[largest, np.arange(basis.shape[1])])


def galore_adamw(
    grads,
    p,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    rank=128,
    update_gap=200,
    scale=0.25,
    weight_decay=0.0,
):
    """Zhao et al. 2024 (GaLore), Algorithm 2, with Adam; other leaves go by AdamW.

    The moments stay as they are when the subspace changes. The sign of a singular
    vector is arbitrary: here its largest entry is positive.
    """
    if p.ndim != 2:
        yield from adamw(grads, p, learning_rate, b1, b2, eps, 0.0, weight_decay)
        return
    adam = Adam(b1, b2, eps)
    wide = p.shape[0] <= p.shape[1]
    for t, g in enumerate(grads, 1):
        if (t - 1) % update_gap == 0:
            left, _, right = np.linalg.svd(g, full_matrices=False)
            basis = with_signs((left if wide else right.T)[:, :rank])
        if wide:
            direction = basis @ adam.direction(basis.T @ g, t)
        else:
            direction = adam.direction(g @ basis, t) @ basis.T
        direction = at(scale, t) * direction + at(weight_decay, t) * p
        update = -at(learning_rate, t) * direction
        yield update, (p := p + update)


def shampoo(grads, p, learning_rate, momentum=0.0, eps=1e-6, update_every=1):
    """Gupta, Koren & Singer 2018, Algorithms 1 and 2: power -1/(2k) for k axes.

    The running average of gradients (momentum) enters the step, never the statistics.
    A scalar is a vector of one element.
    """
    shape, p = p.shape, np.atleast_1d(p)
    mu = Average(momentum)
    sums = [eps * np.eye(n) for n in p.shape]
    roots = [None] * p.ndim
    for t, g in enumerate(grads, 1):
        g = g.reshape(p.shape)
        direction = mu.add(g, t)
        for i in range(p.ndim):
            sums[i] = sums[i] + gram(g, i)
            if (t - 1) % update_every == 0:
                values, vectors = np.linalg.eigh(sums[i])
                powers = np.maximum(values, eps) ** (-1 / (2 * p.ndim))
                roots[i] = (vectors * powers) @ vectors.T
            direction = times(direction, roots[i], i)
        update = -at(learning_rate, t) * direction
        p = p + update
        yield update.reshape(shape), p.reshape(shape)


MATRIX_ORACLES = {
    "adamuon": adamuon,
    "galore_adamw": galore_adamw,
    "muon": muon,
    "normuon": normuon,
    "shampoo": shampoo,
    "soap": soap,
}
