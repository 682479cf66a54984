"""The paths: each optimizer's steps on a surface, one compiled scan each."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adam_jax import OPTIMIZERS
from adam_jax.experiments.running.optimization import build_optimizer, build_schedule
from adam_jax.experiments.settings.config import OptimizerConfig, require_known
from adam_jax.experiments.trace.surfaces import HEAVY_BALL, SURFACES, Surface
from adam_jax.experiments.trace.trace_config import TraceConfig

NEAR = 1e-2  # distance from a minimum that counts as having reached it


class Trace(NamedTuple):
    """Hold the path of one optimizer; before a step that diverges it ends."""

    optimizer: OptimizerConfig
    points: np.ndarray  # (steps + 1, 2), that of the start first
    losses: np.ndarray  # at each point
    # At each point but the last: how much lower the losses of the steps so far, each at
    # the point that it met, were at the minimum; their mean.
    regrets: np.ndarray
    distances: np.ndarray  # of each point to the nearest minimum
    reached: int | None  # the first step within `NEAR` of a minimum
    left: int | None  # the first step from which on it stays outside what is drawn
    diverged: int | None  # the first step whose point or loss is not finite


def place_surface(config: TraceConfig) -> Surface:
    """Give the surface of a config, with the start and the steps that it sets."""
    surface = SURFACES[config.surface]
    x, y = config.start or surface.start
    bounds = []
    for (low, high), at in zip(surface.bounds, (x, y), strict=True):
        margin = 0.05 * (high - low)
        bounds.append((min(low, at - margin), max(high, at + margin)))
    steps = config.steps or surface.steps
    return surface._replace(start=(x, y), steps=steps, bounds=tuple(bounds))


def choose_options(config: TraceConfig) -> dict[str, dict[str, Any]]:
    """Give the options of each optimizer that is asked for, by the name of its path."""
    surface = SURFACES[config.surface]
    names = config.optimizers or tuple(surface.settings)
    for name in config.settings:
        if name not in names:
            raise ValueError(
                f"settings.{name} is set, but optimizers are only {', '.join(names)}: "
                f"add {name} to them"
            )
    usual = surface.settings["adam"]["learning_rate"]
    forced = {"learning_rate": config.learning_rate} if config.learning_rate else {}
    chosen = {}
    for name in names:
        options: dict[str, Any] = {"name": name, "learning_rate": usual}
        options |= HEAVY_BALL.get(name, {}) | surface.settings.get(name, {})
        options |= forced | config.settings.get(name, {})
        expected = "momentum, in settings, or one of those that adam-jax family lists"
        require_known("a name in optimizers", options["name"], OPTIMIZERS, expected)
        chosen[name] = options
    return chosen


def compile_traces(
    config: TraceConfig, surface: Surface
) -> dict[str, Callable[[], Trace]]:
    """Compile the path of each optimizer, and give what walks it, by its name."""
    built = {}
    for name, options in choose_options(config).items():
        try:
            optimizer = OptimizerConfig(**options)
            schedule = build_schedule(optimizer, surface.steps)
            built[name] = optimizer, build_optimizer(optimizer, schedule)
        except ValueError as error:
            message = str(error).removeprefix("optimizer.")
            raise ValueError(f"settings.{name}: {message}") from error
    key = jax.random.key(config.seed)
    return {name: _compile(surface, key, *found) for name, found in built.items()}


def _compile(
    surface: Surface,
    key: Array,
    optimizer: OptimizerConfig,
    tx: optax.GradientTransformation,
) -> Callable[[], Trace]:
    start = jnp.array(surface.start, jnp.float32)
    walk = jax.jit(partial(_walk, surface, tx)).lower(start, key).compile()
    return lambda: measure(surface, optimizer, *jax.device_get(walk(start, key)))


def _walk(
    surface: Surface, tx: optax.GradientTransformation, start: Array, key: Array
) -> tuple[Array, Array, Array]:
    """Give the points, that of the start first, their losses, and the regrets."""
    best = jnp.array(surface.minima[0])

    def loss(point: Array, step: Array) -> Array:
        if surface.step_loss is None:
            return surface.loss(point)
        return surface.step_loss(point, step, jax.random.fold_in(key, step))

    def take(carry, step):
        point, state = carry
        met, grads = jax.value_and_grad(loss)(point, step)
        updates, state = tx.update(grads, state, point)
        point = jnp.asarray(optax.apply_updates(point, updates))
        point = jnp.clip(point, -surface.limit, surface.limit)
        return (point, state), (point, met - loss(best, step))

    numbers = jnp.arange(1, surface.steps + 1)
    _, (points, regrets) = jax.lax.scan(take, (start, tx.init(start)), numbers)
    points = jnp.concatenate([start[None], points])
    return points, jax.vmap(surface.loss)(points), jnp.cumsum(regrets) / numbers


def measure(
    surface: Surface,
    optimizer: OptimizerConfig,
    points: np.ndarray,
    losses: np.ndarray,
    regrets: np.ndarray,
) -> Trace:
    """Cut a path where it diverges, and find when it does what."""
    diverged = _find_first(~(np.isfinite(points).all(axis=1) & np.isfinite(losses)))
    points, losses = points[:diverged], losses[:diverged]
    apart = points.astype(np.float64)[:, None] - np.array(surface.minima)
    distances = np.hypot(*np.moveaxis(apart, -1, 0)).min(axis=1)
    low, high = np.transpose(surface.bounds)
    inside = np.flatnonzero(((low <= points) & (points <= high)).all(axis=1))
    left = int(inside[-1]) + 1 if inside.size else 0
    return Trace(
        optimizer,
        points,
        losses,
        regrets[: len(points) - 1],
        distances,
        reached=_find_first(distances <= NEAR),
        left=left if left < len(points) else None,
        diverged=diverged,
    )


def _find_first(happens: np.ndarray) -> int | None:
    return int(happens.argmax()) if happens.any() else None
