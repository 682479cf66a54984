"""The oracles of methods whose step depends on a whole array, in NumPy's float64.

Each takes the gradients of one leaf, one array a step, and the leaf's initial value,
and yields `(update, p)` at every step.
"""

ARRAY_ORACLES = {}
