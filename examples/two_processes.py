"""Data parallel over processes, with moments in pieces: each device keeps one.

Run `python examples/two_processes.py /tmp/run localhost:1234 0`, and beside it the same
with a 1. If they are killed, start both again, or one with /tmp/run alone: it goes on
from the last checkpoint. A NaN in the rows of one process skips a step on both.

Run `python examples/two_processes.py`. All of w should become 1. It prints:
    error 0.005, step 0.001, skipped 1
"""

import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp

import adam_jax


def train(folder, address=None, number=None):
    if address:  # on a TPU pod and under Slurm, initialize() alone will do
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, num_processes=2, process_id=int(number))
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))  # the devices of all processes
    rows, whole = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ("data", None))
    w = jax.device_put(np.zeros(16, np.float32), whole)
    plain = adam_jax.record(adam_jax.skip_nonfinite(adam_jax.adam(0.02)))
    places = whole, adam_jax.state_shardings(plain, w, over="data")
    tx = adam_jax.shard_state(plain, w, over="data")
    state, count, own = jax.jit(tx.init)(w), jax.process_count(), jax.process_index()

    def loss_fn(w, x):
        return ((x[:, 1:] @ (w - 1) - 0.1 * x[:, 0]) ** 2).mean()

    @jax.jit
    def step(w, state, x):
        return adam_jax.fused.step(tx)(w, jax.grad(loss_fn)(w, x), state)

    checkpoints = ocp.CheckpointManager(folder)
    if start := checkpoints.latest_step() or 0:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (w, state))
        like = jax.tree.map(lambda x, place: x.update(sharding=place), like, places)
        w, state = checkpoints.restore(start, args=ocp.args.StandardRestore(like))
    for i in range(start, 300):
        x = np.random.default_rng([i, own]).normal(size=(64 // count, 17))
        x[0] = np.nan if (i, own) == (70, count - 1) else x[0]
        x = jax.make_array_from_process_local_data(rows, x.astype("float32"))
        w, state = jax.block_until_ready(step(w, state, x))  # or sums may deadlock
        if i % 50 == 49:
            checkpoints.save(i + 1, args=ocp.args.StandardSave((w, state)))
            checkpoints.wait_until_finished()  # or its messages may cross with sums
    checkpoints.close()
    error, last = abs(w - 1).max(), adam_jax.named_figures(state, w)["update_norm"]
    print(f"error {error:.3f}, step {last:.3f}, skipped {state.inner_state.skipped}")
    assert error < 0.05 and state.inner_state.skipped == 1


with tempfile.TemporaryDirectory() as folder:
    train(*sys.argv[1:] or [folder])
