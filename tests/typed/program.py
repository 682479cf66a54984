# pyright: strict, reportUnknownMemberType=false
"""A user's program: strict type checkers find nothing in it.

The exceptions that it makes are for JAX, which leaves arguments of `jit` and `ones`
untyped, and for Optax, which is not marked as typed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

import adam_jax
from adam_jax import Accumulator, Stored, adamw, fused

Params = dict[str, jax.Array]
Step = Callable[[Params, Params, Any], tuple[Params, Any]]


def mean_size(decay: adam_jax.Hyperparam) -> Accumulator:
    return Accumulator(
        {"decay": decay},
        add=lambda moment, value, h: h.decay * moment + (1 - h.decay) * value,
        averages=True,
        power=1,
        measure=lambda grad, mu, h: jnp.abs(grad),
    )


class Plain(NamedTuple):
    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        return values.astype(jnp.float32)


class Half(adam_jax.Format):
    reader = Plain

    def init(self, x: jax.Array, signed: bool) -> Stored:
        return Stored(x.astype(jnp.float16), Plain())

    def encode(self, x: jax.Array, old: Stored, noise: adam_jax.Noise) -> Stored:
        return self.init(x, signed=True)


def schedule(count: jax.Array) -> jax.Array:
    return 1e-3 / jnp.sqrt(count + 1)


def gradient(params: Params) -> Params:
    return {name: 2 * param for name, param in params.items()}


def train(step: Step, params: Params, state: Any) -> tuple[Params, Any]:
    for _ in range(2):
        params, state = step(params, gradient(params), state)
    return params, state


def main() -> None:
    params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    named = adamw(schedule, mu_dtype="8bit", nu_dtype="8bit", mask={"w": True})
    safe = adam_jax.skip_nonfinite(adam_jax.round_to_params(named))
    tx = adam_jax.record(safe, ["update_norm"], every=2)
    params, state = train(jax.jit(fused.step(tx)), params, tx.init(params))
    adam_jax.check_skips(state, limit=10)
    mu, _ = adam_jax.load_moments(state, params)
    figures = adam_jax.named_figures(state, params)
    print(f"moved by {figures['update_norm']:.2f}, mean gradient {mu['w'].mean():.2f}")
    state = adam_jax.convert_state(state, mu_dtype=jnp.float32, nu_dtype="bfloat16")

    tx = optax.chain(
        adam_jax.scale_by_moments(0.9, mean_size(0.99), mu_dtype=Half()),
        adam_jax.bias_correct(),
        adam_jax.precondition(eps=1e-8),
        adam_jax.add_decayed_weights(1e-4, mask=lambda params: {"w": True}),
        adam_jax.scale_by_lr(schedule),
    )
    train(jax.jit(fused.step(tx)), params, tx.init(params))


if __name__ == "__main__":
    main()
