"""From a config to a learning-rate schedule and an optimizer."""

import dataclasses
import inspect

import optax

from adam_jax import OPTIMIZERS, compensate_params, round_to_params
from adam_jax.experiments.config import OptimizerConfig


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Give the learning rate as a function of the step, which counts from 0.

    Raises:
      ValueError: if the warm-up takes all steps or more.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup}, but the whole run has {steps} steps: "
            "shorten the warm-up or train for more epochs"
        )
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
    }[config.schedule]
    if not warmup:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def build_optimizer(
    config: OptimizerConfig, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Look the optimizer up, and give it the options that the config sets.

    Raises:
      ValueError: if it does not take one of them, or refuses its value.
    """
    options = dataclasses.asdict(config)
    for ours in ("name", "learning_rate", "schedule", "warmup_steps", "rounding"):
        del options[ours]
    factory = OPTIMIZERS[config.name]
    takes = [key for key in inspect.signature(factory).parameters if key in options]
    chosen = {key: value for key, value in options.items() if value is not None}
    for key in chosen:
        if key not in takes:
            raise ValueError(
                f"optimizer.{key} is set, but {config.name} does not take it: "
                f"it takes {', '.join(takes)}"
            )
    tx = factory(learning_rate, **chosen)
    wrap = {"stochastic": round_to_params, "compensated": compensate_params}
    return wrap[config.rounding](tx) if config.rounding in wrap else tx
