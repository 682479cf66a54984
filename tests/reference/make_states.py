"""Write states/<version>/: states of this version, which later ones must go on with.

To be run at every release, with the versions of requirements.txt:

    .venv/bin/python tests/reference/make_states.py

Every case of `CASES` takes ten steps from the same parameters. The folder holds the
state after step 5, in <case>.safetensors, and runs.npz, with

    grads/<name>            (10, ...)  the gradient of every step
    <case>/params5/<name>   (...)      after step 5
    <case>/params10/<name>  (...)      after step 10
"""

from pathlib import Path

import jax
import numpy as np
import optax

import adam_jax

HALFWAY, STEPS = 5, 10
CODES = adam_jax.eight_bit(min_size=64)
SHAPES = {"dense": {"kernel": (12, 33), "bias": (3,)}, "scale": ()}


def falling(count):
    return 1e-2 / (1 + count)


CASES = {
    "adamw": adam_jax.adamw(1e-2, weight_decay=0.1),
    "adam_bfloat16": adam_jax.adam(1e-2, mu_dtype="bfloat16", nu_dtype="bfloat16"),
    "adam_8bit": adam_jax.adam(1e-2, mu_dtype=CODES, nu_dtype=CODES),
    "adam_factored": adam_jax.adam(1e-2, nu_dtype=adam_jax.factored(8)),
    "adam_mean_over": adam_jax.adam(1e-2, nu_dtype=adam_jax.mean_over(-1)),
    "amsgrad": adam_jax.amsgrad(falling),
    "sgd": adam_jax.sgd(1e-2, momentum=0.9, accumulator_dtype="bfloat16"),
    "groups": optax.multi_transform(
        {"a": adam_jax.lion(1e-2), "b": adam_jax.rmsprop(1e-2)},
        {"dense": "a", "scale": "b"},
    ),
    "watched": adam_jax.skip_spikes(
        adam_jax.record(optax.inject_hyperparams(adam_jax.adamw)(falling))
    ),
    "gathered": optax.MultiSteps(adam_jax.packed(adam_jax.adabelief(1e-2)), 3),
    "rounded": adam_jax.compensate_params(adam_jax.adam(1e-2)),
}


def run(tx, params, state, grads):
    """Return parameters and state after some more steps."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(len(jax.tree.leaves(grads)[0])):
        grad = jax.tree.map(lambda g, p, n=number: g[n].astype(p.dtype), grads, params)
        params, state = step(params, state, grad)
    return params, state


def to_start(case, arrays):
    """Return arrays as the parameters of a case."""
    dtype = "bfloat16" if case == "rounded" else "float32"
    return jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), arrays)


def main():
    """Write the folder of this version."""
    random = np.random.default_rng(0)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(random.standard_normal, SHAPES, is_leaf=is_shape)
    grads = jax.tree.map(
        lambda shape: random.standard_normal((STEPS, *shape)).astype(np.float32),
        SHAPES,
        is_leaf=is_shape,
    )
    folder = Path(__file__).parent / "states" / adam_jax.__version__
    folder.mkdir(parents=True, exist_ok=True)
    runs = {f"grads/{name}": x for name, x in named(grads)}
    for case, tx in CASES.items():
        start = to_start(case, params)
        first = jax.tree.map(lambda g: g[:HALFWAY], grads)
        half, state = run(tx, start, tx.init(start), first)
        adam_jax.save_state(folder / f"{case}.safetensors", state)
        second = jax.tree.map(lambda g: g[HALFWAY:], grads)
        end, _ = run(tx, half, state, second)
        for steps, tree in ((HALFWAY, half), (STEPS, end)):
            for name, x in named(tree):
                runs[f"{case}/params{steps}/{name}"] = np.asarray(x, np.float32)
    np.savez_compressed(folder / "runs.npz", **runs)


def named(tree):
    """Yield the names and leaves of a tree."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), x


if __name__ == "__main__":
    main()
