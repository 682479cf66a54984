"""Check numbers and measure speed on a GPU or TPU: `python benchmarks/on_device.py`

It takes under five minutes and needs only the package (`pip install .`), no extra.

First it checks JAX's default device against the CPU; it exits with 1 if a check fails.

  bit for bit  Integer arithmetic from the same inputs: random bits, rounding, the split
               of a float32, 8-bit codes and their decoding.
  ten steps    adamw in every format. Each platform contracts products and sums in its
               own way, so moments may differ in the last place, and a few values are
               rounded the other way.

Then it times a jitted, donated step of optax.adamw, of adam_jax.adamw and, where it
differs, its fused step: at GPT-2 small and one leaf of 16384 x 8192 = 2^27.
Each takes turns with optax.adamw. "busy ms" is how long JAX's profiler sees the device
at work in a step: in training, what the host adds to it hides behind the model's own
work. GB/s, of that time, counts the least that a step must move: gradients once,
parameters and state twice.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax import fused, numerics, randomness
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS, TIMED_FORMATS
from adam_jax.experiments.bench.sizes import Problem, parse_size
from adam_jax.experiments.bench.steppers import draw_grads
from adam_jax.experiments.bench.timing import compare

SIZES = (parse_size("gpt2"), Problem("2^27", ((16384, 8192),)))
SHAPES = {"matrix": (64, 256), "ragged": (20, 1000), "bias": (300,), "scalar": ()}
STEPS, LEARNING_RATE = 10, 1e-3


def draw_patterns(size=2**20):
    """Return float32s of random bits, some of them NaN or infinite, none subnormal."""
    bits = np.random.default_rng(0).integers(0, 2**32, size, np.uint32)
    x = bits.view(np.float32)
    x[:4] = np.inf, -np.inf, np.nan, np.finfo(np.float32).max
    # Each platform decides whether a subnormal counts as 0.
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def draw_moments(size=(256, 4096)):
    """Return values over twenty decades of either sign, some of them 0."""
    random = np.random.default_rng(1)
    size_of = 10 ** random.uniform(-12, 8, size)
    x = random.choice([-1, 0, 1, 1, -1], size) * size_of
    return x.astype(np.float32)


def on(device, function, *arrays):
    """Return what a jitted function returns on a device, as NumPy arrays."""
    arrays = jax.device_put(arrays, device)
    return jax.device_get(jax.jit(function)(*arrays))


def check_bits(device, cpu):
    """Yield how many elements differ, for each piece that must not differ in a bit."""
    x, moments = draw_patterns(), draw_moments()

    def bits(words):
        return randomness.random_bits((1000, 1001), (7, words[0]))

    def rounded(x):
        return numerics.round_to_bfloat16(x, randomness.random_bits(x.shape, (1,)))

    def whole(x):
        return numerics.join_float32(*numerics.split_float32(x))

    def noise(shape):
        return randomness.random_bits(shape, (3,))

    def coded(signed):
        def encode(x):
            stored = adam_jax.eight_bit().init(x, signed)
            stored = adam_jax.eight_bit().encode(x, stored, noise)
            return stored, stored.decode()

        return encode

    pieces = {
        "random bits": (bits, np.array([5], np.int32)),
        "stochastic rounding": (rounded, x),
        "split_float32": (numerics.split_float32, x),
        "join_float32": (whole, x),
        "8-bit codes of mu": (coded(True), moments),
        "8-bit codes of nu": (coded(False), np.abs(moments)),
    }
    for name, (function, value) in pieces.items():
        pairs = zip(
            *(jax.tree.leaves(on(d, function, value)) for d in (device, cpu)),
            strict=True,
        )
        yield name, sum(count_unlike(*pair) for pair in pairs)


def count_unlike(x, y):
    """Count the elements whose bits differ; a NaN is like any other."""
    both_nan = (x != x) & (y != y)
    bits = [a.view(f"u{a.dtype.itemsize}") for a in (x, y)]
    return int(((bits[0] != bits[1]) & ~both_nan).sum())


def optimizers():
    """Return what is stepped, by name: an optimizer and the parameters' dtype."""

    def adamw(format, wrap=lambda tx: tx):
        moments = {"mu_dtype": format, "nu_dtype": format}
        return wrap(adam_jax.adamw(LEARNING_RATE, **moments))

    formats = ("float32", "bfloat16", "8bit")
    return {
        **{f: (adamw(f), jnp.float32) for f in formats},
        **{
            f"round_to_params, {f}": (adamw(f, adam_jax.round_to_params), jnp.bfloat16)
            for f in formats
        },
        "compensate_params": (
            adamw("float32", adam_jax.compensate_params),
            jnp.bfloat16,
        ),
        "skip_nonfinite": (adamw("float32", adam_jax.skip_nonfinite), jnp.float32),
    }


def take_steps(device, tx, dtype, in_place):
    """Return parameters and state after some steps, with gradients of all scales."""
    random = np.random.default_rng(2)

    def draw(shape):
        scale = 10 ** random.uniform(-4, 1, shape)
        return (random.normal(size=(STEPS, *shape)) * scale).astype(np.float32)

    grads = {name: draw(shape) for name, shape in SHAPES.items()}
    params = {
        name: jnp.asarray(random.normal(size=shape), dtype)
        for name, shape in SHAPES.items()
    }

    def step(params, state, grads):
        if in_place:
            return fused.step(tx)(params, grads, state)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.device_put(params, device)
    state = jax.jit(tx.init)(params)
    for i in range(STEPS):
        # Cast here: XLA leaves out a rounding that is followed by a widening.
        now = {name: jnp.asarray(g[i], dtype) for name, g in grads.items()}
        now = jax.device_put(now, device)
        params, state = step(params, state, now)
    return jax.device_get((params, state))


def check_steps(device, cpu):
    """Yield, for each optimizer, how far the device is from the CPU's chain.

    Parameters may differ by this many learning rates: with exact moments by roundings
    alone; else a code that is rounded the other way moves a step by one part in 16, or
    one place of a bfloat16 parameter of size 4.
    """
    for name, (tx, dtype) in optimizers().items():
        expected = take_steps(cpu, tx, dtype, in_place=False)
        chain = take_steps(device, tx, dtype, in_place=False)
        own = take_steps(device, tx, dtype, in_place=True)
        place = 0 if dtype == jnp.float32 else 2.0**-6 / LEARNING_RATE
        limit = 0.01 + (0.5 if "8bit" in name else 0.05) + place
        for kind, (params, state) in (("chain", chain), ("fused", own)):
            apart = [
                np.abs(np.float64(a) - np.float64(b)).max(initial=0) / LEARNING_RATE
                for a, b in zip(
                    *map(jax.tree.leaves, (params, expected[0])), strict=True
                )
            ]
            pairs = zip(*map(jax.tree.leaves, (state, expected[1])), strict=True)
            narrow = ("bfloat16", "int8", "uint8")
            stored = [(a, b) for a, b in pairs if a.dtype.name in narrow]
            unlike = sum(count_unlike(a, b) for a, b in stored)
            share = unlike / max(sum(a.size for a, _ in stored), 1)
            yield name, kind, max(apart), limit, share


def measure_busy(stepper, steps=10):
    """Return the seconds a step in which the device is at work; NaN on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            stepper.run(steps)
        [file] = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    lines = [
        line
        for plane in planes
        if plane.name.startswith("/device:")
        for line in plane.lines
    ]
    # A TPU's lines show the same time in several ways, a GPU's streams run at once.
    named = [line for line in lines if line.name == "XLA Ops"]
    named = named or [line for line in lines if line.name.startswith("Stream")]
    spans = sorted((e.start_ns, e.end_ns) for line in named for e in line.events)
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return busy / 1e9 / steps if spans else float("nan")


def list_steps(size):
    """Return what is timed: names of candidates and of formats."""
    steps = [("optax", "float32"), *(("adamw", name) for name in TIMED_FORMATS)]
    if fused.backend() != "xla":  # else it is the same program
        native = fused.backend() == "native"
        steps += [
            ("fused_step", name) for name in TIMED_FORMATS if native or "8bit" in name
        ]
    if len(size.shapes) == 1:
        steps += [("compensated", "pure_float32")]
        steps += [(name, "float32") for name in ("skip_spikes", "record_default")]
    return steps


def time_steps(budget):
    """Yield a row for each size, candidate and format, from turns beside Optax's."""
    for size in SIZES:
        grads = draw_grads(size, jnp.float32)
        base = CANDIDATES["optax"].make(FORMATS["float32"], grads)
        for name, format_name in list_steps(size):
            format = FORMATS[format_name]
            grads = draw_grads(size, format.dtype)
            stepper = CANDIDATES[name].make(format, grads)
            timing = compare(base, stepper, cycle=1, repeats=15, budget=budget)
            busy = measure_busy(stepper)
            width = jnp.dtype(format.dtype).itemsize
            least = 3 * width + 2 * stepper.state_bytes / size.parameters
            yield {
                "size": size.name,
                "step": name,
                "format": format_name,
                "ms": 1e3 * timing.seconds,
                "x optax": timing.speed,
                "busy ms": 1e3 * busy,
                "B/param": least,
                "GB/s": least * size.parameters / busy / 1e9,
                "compile s": stepper.compile_seconds,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=2, help="seconds for each pair")
    parser.add_argument("--json", help="a file for the rows of the table")
    args = parser.parse_args()
    device, cpu = jax.devices()[0], jax.local_devices(backend="cpu")[0]
    print(f"{device.device_kind}, jax {jax.__version__}, fused: {fused.backend()}")
    failed = False
    print("\nelements that differ from the CPU's")
    for name, unlike in check_bits(device, cpu):
        failed |= unlike > 0
        print(f"  {name:26} {unlike}", flush=True)
    print(
        f"\nafter {STEPS} steps: distance of parameters in learning rates, and share of"
    )
    print("narrow values that differ")
    for name, kind, apart, limit, share in check_steps(device, cpu):
        failed |= not (apart <= limit and share < 1e-3)
        print(
            f"  {name:26} {kind:6} {apart:.1e} (at most {limit:.2g})  {share:.1e}",
            flush=True,
        )
    print("\nFAILED" if failed else "\nall as promised", end="\n\n")
    rows = []
    for row in time_steps(args.budget):
        if not rows:
            print("".join(f"{name:>15}" for name in row))
        cells = (f"{x:.2f}" if isinstance(x, float) else x for x in row.values())
        print("".join(f"{cell:>15}" for cell in cells), flush=True)
        rows.append(row)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": device.device_kind, "rows": rows}, file, indent=2)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
