"""`adam-jax trace`: walk, draw, save."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from adam_jax.experiments.arguments import to_toml
from adam_jax.experiments.drawing import to_picture
from adam_jax.experiments.folder import CONFIG, make_run_folder
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.trace.animation import choose_steps, write_animation
from adam_jax.experiments.trace.charts import draw_traces
from adam_jax.experiments.trace.config import TraceConfig
from adam_jax.experiments.trace.paths import (
    Trace,
    compile_traces,
    place_surface,
)
from adam_jax.experiments.trace.report import TraceReport
from adam_jax.experiments.trace.surfaces import SURFACES, Surface


def prepare(config: TraceConfig) -> Callable[[], None]:
    """Compile the paths that the config describes.

    Raises:
      ValueError: if a value in it is wrong.
    """
    resolved, surface = to_toml(config), place_surface(config)
    walks = compile_traces(config, surface)
    return lambda: run_trace(config, resolved, surface, walks)


def run_trace(
    config: TraceConfig,
    resolved: str,
    surface: Surface,
    walks: Mapping[str, Callable[[], Trace]],
) -> None:
    """Walk all paths, and leave everything in a new folder.

    The folder holds config.toml, trace.json, trace.png, and trace.gif or trace.mp4.

    Args:
      config: Says what is asked for.
      resolved: The same as TOML, to be stored.
      surface: The surface of that name, placed.
      walks: Walks each path, by its name.

    Raises:
      OSError: if the folder cannot be made or written to.
      KeyboardInterrupt: after Ctrl-C. All is saved then but the animation.
    """
    stop = threading.Event()
    with on_interrupt(stop.set):
        folder = make_run_folder(Path(config.runs_dir), config.name or config.surface)
        (folder / CONFIG).write_text(resolved, "utf-8")
        traces = {name: walk() for name, walk in walks.items()}
        (folder / "trace.json").write_text(to_json(config, traces), "utf-8")
        title = f"{config.surface}, {surface.steps:,} steps"
        chart = draw_traces(f"{title}: {surface.about}", surface, traces)
        (folder / "trace.png").write_bytes(to_picture(chart))
        frames = choose_steps(surface.steps, config.frames)
        report = TraceReport(len(frames))

        def on_frame(frame: int) -> None:
            report.show(frame)
            if stop.is_set():
                raise KeyboardInterrupt

        try:
            if stop.is_set():
                raise KeyboardInterrupt
            if config.animation != "none":
                file = folder / f"trace.{config.animation}"
                with report.display:
                    write_animation(
                        file, config.surface, surface, traces, frames, on_frame
                    )
        finally:
            report.summarise(title, surface.about, traces, folder)


def to_json(config: TraceConfig, traces: Mapping[str, Trace]) -> str:
    """Give the numbers of the paths, each with the settings that were used.

    A path that diverges ends before the step that does.
    """
    rows = {
        name: {
            "settings": {
                key: value
                for key, value in vars(trace.optimizer).items()
                if value is not None
            },
            "reached": trace.reached,
            "left": trace.left,
            "diverged": trace.diverged,
            "points": [[_shorten(x) for x in point] for point in trace.points],
            "losses": [_shorten(loss) for loss in trace.losses],
            "regrets": [_shorten(x) for x in trace.regrets],
            "distances": [_shorten(x) for x in trace.distances.astype("float32")],
        }
        for name, trace in traces.items()
    }
    minima = SURFACES[config.surface].minima
    content = {"surface": config.surface, "minima": minima, "paths": rows}
    return json.dumps(content) + "\n"


def _shorten(value: object) -> float:
    # As few digits as tell one float32 from the next.
    return float(str(value))
