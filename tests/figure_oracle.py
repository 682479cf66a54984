"""The oracle of the figures: each transcribed from its definition, in float64.

NumPy only. A leaf is a dict: arrays grad, update and param, and where there are such
mu, nu, mu_weight, nu_weight. The whole tree is one long leaf.
"""

import numpy as np

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
# The range that quantiles are clipped to, and so are those of the oracle.
LEAST, LARGEST = 2**-9.5, 2**2.5


def flat(x):
    """Return all elements in float64, or complex128."""
    x = np.asarray(x)
    dtype = np.complex128 if np.iscomplexobj(x) else np.float64
    return x.astype(dtype).reshape(-1)


def landed(param, update):
    """Return the sum as `optax.apply_updates` rounds it: once, to param's dtype."""
    wide = [x.astype("f") if x.dtype.itemsize < 4 else x for x in (param, update)]
    return np.add(*wide).astype(param.dtype)


def share(hits, of):
    """Return the share of `of` in `hits`, 0 of none."""
    return hits / of if of else 0.0


def quantiles(values):
    """Return the order statistics x[floor(q n)] of the positive values, clipped."""
    x = np.sort(values[values > 0])
    if not x.size:
        return np.zeros(len(PROBABILITIES))
    ranks = [min(int(np.floor(q * x.size)), x.size - 1) for q in PROBABILITIES]
    return np.clip(x[ranks], LEAST, LARGEST)


def read(leaf, learning_rate, bound):
    """Return every figure of one leaf by its name, of what the leaf has."""
    out = {}
    grad, update, param = (flat(leaf[k]) for k in ("grad", "update", "param"))
    out["gradient_norm"] = np.sqrt(np.sum(np.abs(grad) ** 2))
    out["update_norm"] = np.sqrt(np.sum(np.abs(update) ** 2))
    out["param_norm"] = np.sqrt(np.sum(np.abs(param) ** 2))
    out["update_ratio"] = share(out["update_norm"], out["param_norm"])
    step = np.abs(update) / learning_rate if learning_rate else 0 * np.abs(update)
    out["effective_step"] = share(step.sum(), step.size)
    out["effective_step_quantiles"] = quantiles(step)
    out["at_step_bound"] = share(np.sum(step >= 0.99 * bound), step.size)
    out["nonfinite"] = np.sum(~np.isfinite(grad))
    moved, lost = update != 0, leaf["landed"].reshape(-1) == leaf["raw"].reshape(-1)
    out["swallowed"] = share(np.sum(moved & lost), np.sum(moved))
    if "mu" in leaf:
        out["bias_correction_mu"] = 1 / leaf["mu_weight"]
    if "nu" in leaf:
        out["bias_correction_nu"] = 1 / leaf["nu_weight"]
    if "mu" in leaf and "nu" in leaf:
        mu, nu = flat(leaf["mu"]), flat(leaf["nu"])
        seen = nu > 0
        root = np.sqrt(nu[seen] / leaf["nu_weight"])
        ratio = np.abs(mu[seen]) / leaf["mu_weight"] / root
        out["signal_to_noise"] = share(ratio.sum(), seen.sum())
        out["signal_to_noise_quantiles"] = quantiles(ratio)
    return out


def whole(leaves):
    """Return the one leaf that all of them make up."""
    arrays = [k for k in leaves[0] if not k.endswith("_weight")]
    joined = {k: np.concatenate([flat(leaf[k]) for leaf in leaves]) for k in arrays}
    return leaves[0] | joined


def figures(leaves, learning_rate, bound):
    """Return (of the whole tree, of each leaf), from dicts of arrays."""
    leaves = [
        leaf
        | {
            "raw": flat(leaf["param"]),
            "landed": flat(landed(leaf["param"], leaf["update"])),
        }
        for leaf in leaves
    ]
    of_leaves = [read(leaf, learning_rate, bound) for leaf in leaves]
    return read(whole(leaves), learning_rate, bound), of_leaves
