"""How long is a step? `python benchmarks/step_time.py` (`make bench` runs it too).

Each candidate's jitted step (update and apply_updates, parameters and state donated) is
run in turn with the first one's, optax.adamw in float32: the ratio is the median over
the pairs, the spread its quartiles. Peak bytes are those of the compiled step, from
`memory_analysis()`: arguments, outputs and temporaries, less what is aliased. State
bytes are those of the live arrays. rollfast is measured where it is installed.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import adam_jax
from adam_jax import numerics


def ours(format, round_params=False):
    """Return our adamw with both moments in a format."""
    tx = adam_jax.adamw(1e-3, mu_dtype=format, nu_dtype=format)
    return optax.chain(tx, adam_jax.round_to_params()) if round_params else tx


def candidates():
    """Return {name: (transformation, dtype of params)}; the first is the base."""
    table = {
        "optax.adamw": (optax.adamw(1e-3), jnp.float32),
        "optax.adamw, bfloat16 params": (optax.adamw(1e-3), jnp.bfloat16),
        "adamw": (ours("float32"), jnp.float32),
        "adamw, bfloat16 moments": (ours("bfloat16"), jnp.float32),
        "adamw, 8bit moments": (ours("8bit"), jnp.float32),
        "adamw, all bfloat16": (ours("bfloat16", True), jnp.bfloat16),
        "adamw, 8bit, bfloat16 params": (ours("8bit", True), jnp.bfloat16),
    }
    if importlib.util.find_spec("rollfast"):
        import rollfast

        table["rollfast.adamw8"] = (rollfast.adamw8(1e-3), jnp.float32)
    return table


class Candidate:
    """A compiled step and the arrays that it runs on."""

    def __init__(self, tx, dtype, leaves, size):
        key = jax.random.key(0)
        self.grads = [jax.random.normal(key, (size,), dtype) for _ in range(leaves)]
        self.params = [jnp.zeros((size,), dtype) for _ in range(leaves)]
        self.state = jax.jit(tx.init)(self.params)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        start = time.perf_counter()
        self.step = step.lower(self.params, self.state, self.grads).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = self.step.memory_analysis()
        self.peak_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.state))

    def run(self):
        """Take a step, and return its seconds."""
        start = time.perf_counter()
        self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))
        return time.perf_counter() - start


def compare(leaves, size, repeats, slow_repeats):
    """Measure every candidate beside the first, pair by pair."""
    table = candidates()
    base = Candidate(*next(iter(table.values())), leaves, size)
    base.run()
    rows = {}
    for name, (tx, dtype) in table.items():
        other = Candidate(tx, dtype, leaves, size)
        other.run()
        pairs = []
        while len(pairs) < (
            repeats if not pairs or pairs[0][1] < 0.5 else slow_repeats
        ):
            pairs.append((base.run(), other.run()))
        ratios = sorted(theirs / first for first, theirs in pairs)
        low, middle, high = statistics.quantiles(ratios, n=4)
        count = leaves * size
        rows[name] = {
            "milliseconds": 1e3 * statistics.median(t for _, t in pairs),
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "state_bytes_per_parameter": other.state_bytes / count,
            "peak_bytes_per_parameter": other.peak_bytes / count,
            "compile_seconds": other.compile_seconds,
        }
    return rows


def time_random_bits(size, repeats):
    """Return the median seconds of the hash of our formats, and of jax.random.bits."""
    hashed = jax.jit(lambda t: numerics.random_bits((size,), [0, t]))
    threefry = jax.jit(lambda t: jax.random.bits(jax.random.key(t), (size,)))
    seconds = []
    for generate in (hashed, threefry):
        generate(0).block_until_ready()
        times = []
        for step in range(repeats):
            start = time.perf_counter()
            generate(step).block_until_ready()
            times.append(time.perf_counter() - start)
        seconds.append(statistics.median(times))
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, default=1)
    parser.add_argument("--size", type=int, default=2**24, help="elements of a leaf")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there too")
    options = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"{options.leaves} x {options.size} parameters; {platform.processor()} "
        f"{device.device_kind} jax {jax.__version__} optax {optax.__version__}\n"
        f"{'step of':30}{'ms':>8}{'x optax':>9}{'quartiles':>14}"
        f"{'state B':>9}{'peak B':>8}{'compile s':>11}"
    )
    rows = compare(options.leaves, options.size, options.repeats, slow_repeats=3)
    for name, row in rows.items():
        quartiles = "{:.2f} {:.2f}".format(*row["ratio_quartiles"])
        print(
            f"{name:30}{row['milliseconds']:8.1f}{row['ratio']:9.2f}{quartiles:>14}"
            f"{row['state_bytes_per_parameter']:9.2f}"
            f"{row['peak_bytes_per_parameter']:8.1f}{row['compile_seconds']:11.1f}"
        )
    hashed, threefry = time_random_bits(options.size, options.repeats)
    print(
        f"random bits: the hash {1e9 * hashed / options.size:.2f} ns an element, "
        f"jax.random.bits {1e9 * threefry / options.size:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
