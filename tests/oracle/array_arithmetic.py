"""Arithmetic of the oracles of whole arrays: plain NumPy, in float64."""

import math

import numpy as np

from oracle.arithmetic import at


def divide(x, y):
    """Return x / y, and 0 for 0 / 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((x == 0) & (y == 0), 0.0, np.divide(x, y))


def norm(x):
    """Return the Frobenius norm over all axes."""
    return math.sqrt(np.sum(x * x))


def rms(x):
    """Return the root mean square over all axes."""
    return math.sqrt(np.mean(x * x))


class Average:
    """The moving average m = b*m + (1-b)*x of what it is given, started at 0."""

    def __init__(self, b):
        self.b = b
        self.value = 0.0
        self.weight = 0.0

    def add(self, x, t):
        """Take x in at step t, and return the average, not corrected."""
        b = at(self.b, t)
        self.value = b * self.value + (1 - b) * x
        self.weight = b * self.weight + (1 - b)
        return self.value

    @property
    def hat(self):
        """The average, corrected: divided by the weight of what it has seen."""
        return divide(self.value, self.weight)


class Adam:
    """Adam's two moments and its direction (Kingma & Ba 2014, Algorithm 1)."""

    def __init__(self, b1, b2, eps, eps_root=0.0):
        self.mu, self.nu = Average(b1), Average(b2)
        self.eps, self.eps_root = eps, eps_root

    def direction(self, g, t):
        """Take the gradient of step t in, and return mu_hat / D."""
        self.mu.add(g, t)
        self.nu.add(g * g, t)
        return divide(self.mu.hat, self.denominator(t))

    def denominator(self, t):
        """Return D = sqrt(nu_hat + eps_root) + eps."""
        return np.sqrt(self.nu.hat + at(self.eps_root, t)) + at(self.eps, t)


class Factored:
    """An average of x as its row and column means (Shazeer & Stern 2018, Alg. 4).

    Rows and columns are the two largest axes. A leaf without two axes of at least
    `smallest` elements is averaged element by element.
    """

    def __init__(self, b, shape, smallest):
        order = np.argsort(shape, kind="stable")
        self.axes = None
        if len(shape) >= 2 and shape[order[-2]] >= smallest:
            self.axes = int(order[-2]), int(order[-1])
        self.parts = [Average(b) for _ in (self.axes or (None,))]

    def add(self, x, t):
        """Take x in at step t, and return the estimate of its average."""
        if self.axes is None:
            return self.parts[0].add(x, t)
        one, other = self.axes
        rows = self.parts[0].add(np.mean(x, axis=other, keepdims=True), t)
        columns = self.parts[1].add(np.mean(x, axis=one, keepdims=True), t)
        return rows * columns / np.mean(rows, axis=one, keepdims=True)
