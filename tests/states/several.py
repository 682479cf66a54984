"""A small run on four devices, of one process or of two.

`several.py FOLDER ADDRESS NUMBER KIND` is one of the two: it trains, tries what can be
done with a state, and then trains and saves until it is killed.
"""

import os
import pickle
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import adamw, eight_bit, shard_state, skip_nonfinite, state_shardings

EIGHT = eight_bit(block=4, min_size=16)
FIGURES = ["update_norm", "signal_to_noise", "nonfinite"]
# How moments are stored; whether they are in pieces; the dtype of the parameters.
CASES = {
    "whole": (lambda: adamw(1e-2), False, "float32"),
    "pieces": (lambda: adamw(1e-2), True, "float32"),
    "rounded": (
        lambda: adamw(1e-2, mu_dtype="bfloat16", nu_dtype=EIGHT),
        True,
        "float32",
    ),
    "params": (
        lambda: adam_jax.round_to_params(adamw(1e-2, mu_dtype=EIGHT)),
        True,
        "bfloat16",
    ),
}
SPECS = {"w": P(None, "model"), "v": P("model"), "b": P()}
SHAPES = {"w": (8, 16), "v": (16, 8), "b": (16,)}
SAVED, STEPS, POISONED = 2, 4, 1  # a NaN is in this batch, on the last device alone
KILLED = "rounded"  # the case that is trained until it is killed


def mesh_of(kind=AxisType.Auto):
    """Return a mesh in which each process has a row."""
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    return Mesh(devices, ("data", "model"), axis_types=(kind, kind))


def give(number, mesh):
    """Return a batch, to which each process gives its rows."""
    rng = np.random.default_rng(number)
    x, y = rng.normal(size=(2, 8, 8))
    if number == POISONED:
        x[-1] = np.nan
    own = 8 // jax.process_count()
    rows = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
    where = NamedSharding(mesh, P("data"))
    return [
        jax.make_array_from_process_local_data(where, a[rows].astype("float32"))
        for a in (x, y)
    ]


class Run:
    """One of the cases, on a mesh."""

    def __init__(self, name, mesh):
        make, pieces, dtype = CASES[name]
        rng = np.random.default_rng(0)
        start = {k: np.asarray(rng.normal(size=SHAPES[k]) / 4, dtype) for k in SHAPES}
        lay = {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()}
        self.mesh, self.params = mesh, jax.tree.map(jax.device_put, start, lay)
        tx = adam_jax.record(skip_nonfinite(make()), FIGURES)
        over = "data" if pieces else None
        places = lay, state_shardings(tx, self.params, over=over)
        tx = shard_state(tx, self.params, over="data") if pieces else tx
        self.tx = tx
        self.state = jax.jit(tx.init)(self.params)
        self.target = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            (self.params, self.state),
            places,
        )
        self.number = 0

        def take(params, state, x, y):
            def loss_of(params):
                hidden = jnp.tanh(x @ params["w"] + params["b"])
                return jnp.mean((hidden @ params["v"] - y) ** 2)

            updates, state = tx.update(jax.grad(loss_of)(params), state, params)
            return optax.apply_updates(params, updates), state

        self.take = jax.jit(take, out_shardings=places)

    def go_on(self, end):
        """Take the steps up to a number."""
        for number in range(self.number, end):
            batch = give(number, self.mesh)
            self.params, self.state = self.take(self.params, self.state, *batch)
        self.number = end
        return self

    def restore(self, number, kept):
        """Go on from what was saved."""
        self.number, (self.params, self.state) = number, kept
        return self

    def report(self):
        """Return all that it has, and what a logger would be given."""
        adam_jax.check_skips(self.state, 1)
        return (
            read((self.params, self.state)),
            adam_jax.named_figures(self.state, self.params),
            adam_jax.first_nonfinite(self.state, self.params),
        )


def read(tree):
    """Return the leaves of a tree as NumPy arrays, whole on each process."""
    mesh = next(x.sharding.mesh for x in jax.tree.leaves(tree) if np.ndim(x))
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
    return jax.device_get(jax.tree.leaves(whole(tree)))


def open_folder(folder):
    return ocp.CheckpointManager(Path(folder).absolute())


def save(folder, number, tree):
    with open_folder(folder) as checkpoints:
        checkpoints.save(number, args=ocp.args.StandardSave(tree))


def load(folder, target):
    """Return the last number in a folder, and what was saved under it."""
    with open_folder(folder) as checkpoints:
        number = checkpoints.latest_step()
        restore = ocp.args.StandardRestore(target)
        return number, checkpoints.restore(number, args=restore)


def train(mesh, folder):
    """Train each case, and save it on the way; return all then, and at the end."""
    runs = {name: Run(name, mesh).go_on(SAVED) for name in CASES}
    save(folder, SAVED, {k: (run.params, run.state) for k, run in runs.items()})
    halves = {name: run.report() for name, run in runs.items()}
    return halves, {name: run.go_on(STEPS).report() for name, run in runs.items()}


def resume(mesh, folder):
    """Take the second half from what was saved."""
    runs = {name: Run(name, mesh) for name in CASES}
    number, kept = load(folder, {name: run.target for name, run in runs.items()})
    return {
        name: run.restore(number, kept[name]).go_on(STEPS).report()
        for name, run in runs.items()
    }


def handle(kind, folder):
    """Do with states all that is done outside a step; return the leaves of each."""
    run, old = Run("pieces", mesh_of(kind)), optax.adamw(1e-2)
    params = run.params
    _, state = jax.jit(run.tx.update)(params, run.state, params)
    _, theirs = old.update(params, old.init(params), params)
    here = jax.local_devices()[0]
    local = jax.device_put(jax.device_get(_replicate(theirs, run.mesh)), here)
    tx = adam_jax.record(adamw(1e-2, mu_dtype="bfloat16", nu_dtype=EIGHT), FIGURES)
    mu, nu = adam_jax.load_moments(state)
    made = {
        "adopted": adam_jax.adopt_state(tx, state, params).state,
        "from one": adam_jax.adopt_state(tx, local, params).state,
        "to optax": adam_jax.adopt_state(old, state, params).state,
        "packed": adam_jax.adopt_state(
            adam_jax.packed(adamw(1e-2), max_size=99), state, params
        ).state,
        "converted": adam_jax.convert_state(state, nu_dtype=EIGHT),
        "set": adam_jax.set_moments(tx, params, mu, nu, count=1),
    }
    save(folder, 0, made)  # which Orbax refuses where a leaf is not on all processes
    stepped = jax.jit(tx.update)(params, made["from one"], params)
    return {"stepped": read(stepped), **{k: read(x) for k, x in made.items()}}


def _replicate(tree, mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)


def refuse():
    """Return what is said of a state in pieces, for parameters of one process."""
    run = Run("pieces", mesh_of())
    alone = jax.device_put(
        {k: np.zeros(shape, "float32") for k, shape in SHAPES.items()},
        jax.local_devices()[0],
    )
    try:
        adam_jax.adopt_state(adamw(1e-2), run.state, alone)
    except ValueError as error:
        return str(error)


def end_with_parent():
    """End when nobody holds the other end of the standard input."""
    sys.stdin.read()
    os._exit(1)


def main(folder, address, number, kind):
    threading.Thread(target=end_with_parent, daemon=True).start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address, 2, int(number), coordinator_bind_address=address
    )
    folder = Path(folder)
    results = {
        "trained": train(mesh_of(), folder / "by two"),
        "resumed": resume(mesh_of(), folder / "by one"),
        "handled": handle(AxisType[kind], folder / "handled by two"),
        "refused": refuse(),
    }
    draft = folder / f"draft {number}"
    draft.write_bytes(pickle.dumps(results))
    draft.rename(folder / f"results {number}")
    run = Run(KILLED, mesh_of())
    with open_folder(folder / "killed") as checkpoints:
        while True:
            run.go_on(run.number + 1)
            tree = ocp.args.StandardSave((run.params, run.state))
            checkpoints.save(run.number, args=tree)
            checkpoints.wait_until_finished()


if __name__ == "__main__":
    main(*sys.argv[1:])
