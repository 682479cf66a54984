"""From a config to a learning-rate schedule and an optimizer."""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import (
    FIGURES,
    OPTIMIZERS,
    add_decayed_weights,
    compensate_params,
    record,
    round_to_params,
    skip_nonfinite,
    skip_spikes,
    step_bound,
)
from adam_jax.experiments.settings.config import OptimizerConfig
from adam_jax.recipes.notes import collecting

# Options of the run; the others are arguments of one of OPTIMIZERS.
OURS = {"name", "learning_rate", "schedule", "warmup_steps", "l2", "rounding", "guard"}
OURS |= {"arguments"}
CHOSEN = [x.name for x in dataclasses.fields(OptimizerConfig) if x.name not in OURS]


def build_schedule(
    config: OptimizerConfig, steps: int, learning_rate: ArrayLike | None = None
) -> optax.Schedule:
    """Give the learning rate as a function of the step, which counts from 0.

    A learning rate takes the place of the config's; it may be traced.
    """
    peak: Any = config.learning_rate if learning_rate is None else learning_rate
    warmup = config.warmup_steps
    if warmup >= steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup}, but the whole run has {steps} steps: "
            "shorten the warm-up or train for more epochs"
        )
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
        "inverse_sqrt": lambda count: peak / jnp.sqrt(count + 1.0),
    }[config.schedule]
    if not warmup:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def build_optimizer(
    config: OptimizerConfig,
    learning_rate: optax.ScalarOrSchedule,
    /,
    **hyperparams: ArrayLike,
) -> optax.GradientTransformation:
    """Look the optimizer up, and give it the options that the config sets.

    Hyperparameters take the place of the config's, learning_rate (the peak of the
    schedule) among them; these may be traced.
    """
    options: dict[str, Any] = vars(config) | hyperparams
    factory = OPTIMIZERS[config.name]
    parameters = inspect.signature(factory).parameters
    takes = [key for key in parameters if key in CHOSEN]
    if options["decay_per_step"] is not None and "weight_decay" in takes:
        share = options.pop("decay_per_step")
        options["weight_decay"] = share / options["learning_rate"]
    chosen = {key: options.get(key) for key in CHOSEN}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    for key in chosen:
        if key not in takes:
            raise ValueError(
                f"optimizer.{key} is set, but {config.name} does not take it: "
                f"it takes {', '.join(takes)}"
            )
    free = [key for key in list(parameters)[1:] if key not in CHOSEN]
    for key in config.arguments:
        if key not in free:
            raise ValueError(
                f"optimizer.arguments.{key} is set, but what {config.name} takes there "
                f"is {', '.join(free) or 'nothing'}"
            )
    try:
        tx = factory(learning_rate, **chosen, **config.arguments)
    except TypeError as error:  # of what stands under arguments, no type is known
        raise ValueError(f"optimizer.arguments: {error}") from error
    if options["l2"] is not None:
        tx = optax.chain(add_decayed_weights(options["l2"]), tx)
    wrap = {
        "stochastic": round_to_params,
        "compensated": compensate_params,
        "nonfinite": skip_nonfinite,
        "spikes": skip_spikes,
    }
    # The guard is outermost: what rounding keeps as state is then guarded too.
    for name in (config.rounding, config.guard):
        tx = wrap[name](tx) if name in wrap else tx
    return tx


def watch(
    tx: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    params: Any,
    every: int,
) -> optax.GradientTransformationExtraArgs:
    """Record every figure that the optimizer has, once in `every` steps.

    It stands around the guard: of a skipped step, too, the gradients are seen.
    """
    state = jax.eval_shape(record(tx, learning_rate=learning_rate).init, params)
    figures, decays = set(state.figures), _find_decays(tx, params)
    bound = step_bound(*decays) if decays else 1.0
    if not decays:
        figures.discard("at_step_bound")
    chosen = [name for name in FIGURES if name.removesuffix("_quantiles") in figures]
    return record(tx, chosen, learning_rate=learning_rate, bound=bound, every=every)


def _find_decays(tx: optax.GradientTransformation, params: Any) -> list[float] | None:
    """Return b1 and b2 if updates are a rate times Adam's ratio of two averages."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    recipes: list[Any] = []

    def step(grads, state, params):
        with collecting() as notes:
            updates, _ = tx.update(grads, state, params)
        recipes.extend(map(notes.recipes.get, jax.tree.leaves(updates)))

    jax.eval_shape(step, like, jax.eval_shape(tx.init, like), like)
    if not recipes or not all(
        recipe and recipe.is_known and recipe.origin.first.accumulator.read is None
        for recipe in recipes
    ):
        return None
    origin = recipes[0].origin
    return [x.accumulator.hyperparams["decay"] for x in (origin.first, origin.second)]
