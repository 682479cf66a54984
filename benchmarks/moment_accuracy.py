"""How true is a stored second moment? `python benchmarks/moment_accuracy.py`

A stationary stream: 20,000 Gaussian gradients for 4,096 parameters whose scales span
1.5 decades inside each block, through the real `scale_by_moments`. Over the last 5,000
steps, printed for each way to store nu (exact: the same average in float64):

  mean      mean over elements and steps of nu / exact nu; 1 is unbiased
  spread    root mean square over both of sqrt(nu / exact nu) - its mean

Beside our formats: nearest rounding in each, the other known 8-bit codes, Optax in
bfloat16 and, where it is installed, rollfast.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax import (
    Format,
    Stored,
    dense,
    eight_bit,
    load_moments,
    scale_by_moments,
)

B2 = 0.999
ROWS, COLUMNS = 16, 256
DECADES = 1.5


def half(shape):
    """The noise that makes stochastic rounding nearest rounding."""
    return jnp.full(shape, 1 << 31, jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Nearest(Format):
    """Another format, rounded to the nearest."""

    inner: Format | None = None

    @property
    def reader(self):
        return self.inner.reader

    def init(self, x, signed):
        return self.inner.init(x, signed)

    def encode(self, x, old, noise):
        return self.inner.encode(x, old, half)


def nearest(format):
    """The same format, rounded to the nearest."""
    return Nearest(inner=format)


def codebook(levels, sqrt=False, block=32):
    """Store indices into sorted levels in [0, 1], scaled by each block's maximum.

    Stochastic between the two levels around a value, in the domain that is stored.
    """
    levels = jnp.asarray(levels, jnp.float32)

    class Codebook(NamedTuple):
        scales: jax.Array

        def decode(self, values, leaf):
            y = levels[values] * jnp.repeat(self.scales, block, -1)
            return y**2 if sqrt else y

    class CodebookFormat(Format):
        reader = Codebook

        def init(self, x, signed):
            return self.encode(x, None, half)

        def encode(self, x, old, noise):
            y = jnp.sqrt(x) if sqrt else x
            scale = y.reshape(*y.shape[:-1], -1, block).max(-1)
            ratio = y / jnp.repeat(jnp.where(scale > 0, scale, 1), block, -1)
            upper = jnp.clip(jnp.searchsorted(levels, ratio, side="left"), 1, 255)
            low, high = levels[upper - 1], levels[upper]
            share = (ratio - low) / (high - low)
            uniform = (noise(x.shape) >> 8).astype(jnp.float32) * 2.0**-24
            code = upper - (uniform >= share)
            return Stored(code.astype(jnp.uint8), Codebook(scale))

    return CodebookFormat()


def companded(sqrt_domain):
    """FlashOptim's companding: 8-bit integers of the square root of nu."""
    levels = np.linspace(0, 1, 256) ** (1 if sqrt_domain else 2)
    return codebook(levels, sqrt=sqrt_domain)


def dynamic_map():
    """The unsigned dynamic map of bitsandbytes (Dettmers et al. 2022, section 2.2)."""
    values = [0.0]
    for exponent in range(7):
        count = 2 ** (exponent + 1) + 1
        edges = np.linspace(0.1, 1, count)
        values += list((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6))
    values = sorted([*values, 1.0])
    return codebook(
        np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(values)), values)
    )


def formats():
    ours8 = eight_bit(min_size=0)
    return {
        "float32": dense("float32"),
        "bfloat16": dense("bfloat16"),
        "8bit": ours8,
        "bfloat16, nearest": nearest(dense("bfloat16")),
        "8bit, nearest": nearest(ours8),
        "8-bit companded, sqrt(nu) rounded": companded(True),
        "8-bit companded, nu rounded": companded(False),
        "8-bit dynamic map": dynamic_map(),
        "8-bit dynamic map, nearest": nearest(dynamic_map()),
    }


def scales(seed=0):
    """Scales of the gradients, of the parameters' shape: 1.5 decades in each block."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(10 ** rng.uniform(-DECADES, 0, (ROWS, COLUMNS)), jnp.float32)


def measure(init, step, read, steps, window):
    """Run the stream through an optimizer, beside the float64 average of it."""
    scale = scales()

    def body(carry, count):
        state, exact = carry
        key = jax.random.fold_in(jax.random.key(0), count)
        grads = scale * jax.random.normal(key, scale.shape, jnp.float32)
        state = step(grads, state)
        exact = B2 * exact + (1 - B2) * grads.astype(jnp.float64) ** 2
        ratio = read(state).astype(jnp.float64) / exact
        late = count >= steps - window
        root = jnp.sqrt(ratio)
        sums = jnp.array([ratio.mean(), root.mean(), (root**2).mean()])
        return (state, exact), jnp.where(late, sums, 0)

    zeros = jnp.zeros(scale.shape, jnp.float64)
    carry = (init(jnp.zeros(scale.shape, jnp.float32)), zeros)
    _, sums = jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(steps)))(carry)
    mean, root, square = np.asarray(sums).sum(0) / window
    return {"mean": float(mean), "spread": float(np.sqrt(square - root**2) / root)}


def measure_format(format, steps, window):
    """Measure nu as our `scale_by_moments` stores it in `format`."""
    tx = scale_by_moments(b1=None, b2=B2, nu_dtype=format)
    return measure(
        tx.init,
        lambda grads, state: tx.update(grads, state)[1],
        lambda state: load_moments(state)[1],
        steps,
        window,
    )


def measure_optax(steps, window):
    """Measure nu of `optax.scale_by_adam` on bfloat16 parameters."""
    tx = optax.scale_by_adam(b2=B2)
    return measure(
        lambda params: tx.init(params.astype(jnp.bfloat16)),
        lambda grads, state: tx.update(grads.astype(jnp.bfloat16), state)[1],
        lambda state: state.nu,
        steps,
        window,
    )


def measure_rollfast(stochastic, steps, window):
    """Measure nu of `rollfast.adamw8`, whose blocks hold 2,048 elements."""
    import rollfast
    from rollfast.optim.adam8 import dequantize_blocks

    tx = rollfast.adamw8(
        1.0, b2=B2, min_size=0, stochastic_rounding=stochastic, key=jax.random.key(0)
    )
    return measure(
        tx.init,
        lambda grads, state: tx.update(grads, state, grads)[1],
        lambda state: dequantize_blocks(state[0].nu).reshape(ROWS, COLUMNS),
        steps,
        window,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=5_000)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there too")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    length = {"steps": options.steps, "window": options.window}
    measures = {
        name: functools.partial(measure_format, format)
        for name, format in formats().items()
    }
    measures["optax, bfloat16"] = measure_optax
    if importlib.util.find_spec("rollfast"):
        measures["rollfast"] = functools.partial(measure_rollfast, True)
        measures["rollfast, nearest"] = functools.partial(measure_rollfast, False)
    rows = {}
    print(f"{'how nu is stored':36}{'mean':>8}{'spread of sqrt(nu)':>20}")
    for name, run in measures.items():
        rows[name] = row = run(**length)
        print(f"{name:36}{row['mean']:8.3f}{row['spread']:20.1%}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
