# pyright: strict, reportUnknownMemberType=false
"""A user's mistakes: type checkers report the lines that are marked, and no others."""

from typing import Any

import jax.numpy as jnp

import adam_jax
from adam_jax import adamw


class Unfinished(adam_jax.Format):
    pass


def mistakes(state: Any) -> None:
    adamw(1e-3, mu_dtype="8bit", nu_dtype=jnp.bfloat16)
    adamw(1e-3, mu_dtype=3)  # wrong: neither a dtype nor a format
    adamw(1e-3, nu_dtype=adam_jax.eight_bit)  # wrong: not called
    adamw(1e-3, nu_dtype=Unfinished())  # wrong: abstract
    adamw(1e-3, beta1=0.9)  # wrong: it is b1
    adamw("1e-3")  # wrong: a string
    adam_jax.scale_by_moments(b1=[0.9])  # wrong: a list
    adam_jax.add_decayed_weight(0.1)  # wrong: misspelled
    adam_jax.round_to_params(seed=0.5)  # wrong: a float
    adam_jax.fused.step()  # wrong: of which optimizer?
    adam_jax.check_skips(state)  # wrong: no limit
    adam_jax.named_figures(state, {"w": 1.0})["update_norm"].item()  # wrong: a float
    len(adam_jax.fused.backend)  # wrong: not called
