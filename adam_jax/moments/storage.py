"""The formats by name, and the values of arguments such as `nu_dtype`."""

import difflib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from typing_extensions import TypeAliasType

from adam_jax.hyperparams import shown
from adam_jax.moments.blocks import eight_bit
from adam_jax.moments.formats import Format, dense

Storage = TypeAliasType("Storage", DTypeLike | Format | None)
"""How to store a moment: a dtype, a `Format`, the name of one, or None."""

FORMATS: dict[str, Callable[[], Format]] = {
    "float32": functools.partial(dense, "float32"),
    "bfloat16": functools.partial(dense, "bfloat16"),
    "8bit": eight_bit,
}
"""The formats by name, as `mu_dtype` and `nu_dtype` accept them."""


def as_format(name: str, value: Any) -> Format:
    """Return the format that `value` stands for.

    Args:
      name: the argument's name, for the message.
      value: a format, its name, a dtype, or None for the moment's initial dtype.

    Raises:
      ValueError: if it is none of these; the message starts with `name`.
    """
    if isinstance(value, Format):
        return value
    if isinstance(value, str) and value in FORMATS:
        return FORMATS[value]()
    expected = f"{name} must be a dtype, a format or one of {', '.join(FORMATS)}"
    if isinstance(value, jax.Array | np.ndarray):
        raise ValueError(
            f"{expected}, got an array. Under optax.inject_hyperparams, which calls a "
            "class such as jnp.bfloat16 as if it were a schedule, write the name: "
            f"{name}={value.dtype.name!r}."
        )
    if callable(value) and not isinstance(value, type):
        raise ValueError(f"{name} must be a format, got a function: call {value!r}.")
    try:
        if value is not None:
            jnp.dtype(value)
    except (TypeError, ValueError):
        close = difflib.get_close_matches(str(value).lower(), FORMATS, 1, 0.5)
        cure = f": did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"{expected}, got {shown(value)}{cure}") from None
    try:
        return dense(value)
    except ValueError as error:
        raise ValueError(f"{expected}, got {shown(value)}: {error}") from None
