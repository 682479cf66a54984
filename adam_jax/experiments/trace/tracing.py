"""`adam-jax trace`: walk, draw, save."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.metrics import PATHS
from adam_jax.experiments.pictures.drawing import to_picture
from adam_jax.experiments.pictures.scales import name_values
from adam_jax.experiments.pictures.tables import Table
from adam_jax.experiments.running.folder import CONFIG, make_run_folder
from adam_jax.experiments.running.progress import Display, print_whole
from adam_jax.experiments.settings.arguments import to_toml
from adam_jax.experiments.trace.animation import (
    choose_steps,
    draw_frames,
    write_animation,
)
from adam_jax.experiments.trace.path_charts import draw_traces
from adam_jax.experiments.trace.paths import NEAR, Trace, compile_traces, place_surface
from adam_jax.experiments.trace.surfaces import Surface
from adam_jax.experiments.trace.trace_config import TraceConfig

LINES = 4  # of progress, without a terminal
LEGEND = "distance: to the nearest minimum; within: the first step that is so near"


def prepare(config: TraceConfig) -> Callable[[], None]:
    """Compile the paths of a config, or raise a ValueError if a value is wrong."""
    resolved, surface = to_toml(config), place_surface(config)
    walks = compile_traces(config, surface)
    return lambda: run_trace(config, resolved, surface, walks)


def run_trace(
    config: TraceConfig,
    resolved: str,
    surface: Surface,
    walks: Mapping[str, Callable[[], Trace]],
) -> None:
    """Walk all paths, and leave config, numbers, picture and animation in a new folder.

    After Ctrl-C all is saved but the animation.
    """
    stop = threading.Event()
    with on_interrupt(stop.set):
        folder = make_run_folder(Path(config.runs_dir), config.name or config.surface)
        (folder / CONFIG).write_text(resolved, "utf-8")
        traces = {name: walk() for name, walk in walks.items()}
        (folder / PATHS).write_text(to_json(config, surface, traces), "utf-8")
        title = f"{config.surface}, {surface.steps:,} steps"
        chart = draw_traces(f"{title}: {surface.about}", surface, traces)
        (folder / "trace.png").write_bytes(to_picture(chart))
        steps = choose_steps(surface.steps, config.frames)
        display = Display("frame", len(steps), transient=True)

        def draw() -> Iterator[Any]:
            """Draw the frames, and show how many there are, until Ctrl-C."""
            frames = draw_frames(config.surface, surface, traces, steps)
            for number, frame in enumerate(frames, 1):
                yield frame
                display.reach(number)
                if number * LINES // len(steps) > (number - 1) * LINES // len(steps):
                    display.note(f"animation: frame {number}/{len(steps)}")
                if stop.is_set():
                    raise KeyboardInterrupt

        try:
            if stop.is_set():
                raise KeyboardInterrupt
            if config.animation != "none":
                with display:
                    write_animation(folder / f"trace.{config.animation}", draw())
        finally:
            table = tabulate_ends(title, traces)
            print_whole(table, surface.about, LEGEND, f"run: {folder}")


def to_json(config: TraceConfig, surface: Surface, traces: Mapping[str, Trace]) -> str:
    """Give the numbers of the paths, each with the settings that were used."""
    paths = {
        name: {
            "settings": {
                k: v for k, v in vars(trace.optimizer).items() if v is not None
            },
            "reached": trace.reached,
            "left": trace.left,
            "diverged": trace.diverged,
            "points": _list(trace.points),
            "losses": _list(trace.losses),
            "regrets": _list(trace.regrets),
            "distances": _list(trace.distances),
        }
        for name, trace in traces.items()
    }
    content = {"surface": config.surface, "minima": surface.minima, "paths": paths}
    return json.dumps(content) + "\n"


def _list(values: np.ndarray) -> list[Any]:
    """Give numbers in as few digits as tell one float32 from the next."""
    return values.astype(np.float32).astype(str).astype(float).tolist()


def tabulate_ends(title: str, traces: Mapping[str, Trace]) -> Table:
    """Make the table of where each path has come to."""
    heads = ["optimizer", "learning rate", "last point", "loss", "distance"]
    heads += [f"within {NEAR:g}", "lost"]
    rates = name_values(x.optimizer.learning_rate for x in traces.values())
    rows = [
        [
            name,
            rates[trace.optimizer.learning_rate],
            "({:.3g}, {:.3g})".format(*trace.points[-1]),
            f"{trace.losses[-1]:.4g}",
            f"{trace.distances[-1]:.2g}",
            "never" if trace.reached is None else f"step {trace.reached:,}",
            describe_loss(trace),
        ]
        for name, trace in traces.items()
    ]
    shown = len(heads) if any(row[-1] for row in rows) else -1
    return Table(heads[:shown], [row[:shown] for row in rows], title)


def describe_loss(trace: Trace) -> str:
    """Say how a path was lost, if it was: what is outside is not in the picture."""
    if trace.diverged is not None:
        return f"diverged at step {trace.diverged:,}"
    return "" if trace.left is None else f"outside from step {trace.left:,}"
