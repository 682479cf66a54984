"""The table of all optimizers."""

from collections.abc import Callable

import optax

from adam_jax.family.both_moments import adam, adamw, nadam, nadamw, simplified_adam
from adam_jax.family.one_moment import adagrad, lion, rmsprop, sgd
from adam_jax.family.other_division import radam
from adam_jax.family.other_moments import adabelief, adamax, adamaxw, amsgrad, yogi

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "simplified_adam": simplified_adam,
    "adamw": adamw,
    "nadam": nadam,
    "nadamw": nadamw,
    "amsgrad": amsgrad,
    "adamax": adamax,
    "adamaxw": adamaxw,
    "adabelief": adabelief,
    "radam": radam,
    "yogi": yogi,
    "lion": lion,
}
"""Every optimizer by name: those that the command line offers and the tests cover."""
