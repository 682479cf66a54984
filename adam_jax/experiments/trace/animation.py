"""The animation of paths: all optimizers side by side, step by step."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from adam_jax.experiments.drawing import COLORS
from adam_jax.experiments.trace.paths import Trace
from adam_jax.experiments.trace.picture import (
    MINIMUM,
    add_legend,
    draw_lines,
    draw_surface,
)
from adam_jax.experiments.trace.surfaces import Surface

FRAMES_PER_SECOND = 20


class _GifWriter(PillowWriter):
    """Write one palette, and of each frame only what is new: a tenth of the bytes."""

    def finish(self) -> None:
        frames = self._frames  # pyright: ignore[reportAttributeAccessIssue] (untyped)
        if not frames:  # interrupted before the first one
            return
        palette = _make_palette()
        first, *others = (
            frame.quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in frames
        )
        first.save(
            self.outfile,
            save_all=True,
            append_images=others,
            optimize=True,
            duration=1000 // FRAMES_PER_SECOND,
            loop=0,
        )


def _make_palette() -> Image.Image:
    """Give greys, and what the edges of coloured lines blend into on pale grey."""
    greys = np.linspace(0, 1, 64)[:, None].repeat(3, axis=1)
    colors = np.array([to_rgb(color) for color in (*COLORS, MINIMUM["mfc"])])
    shares = np.linspace(0.2, 1, 8)[:, None, None]
    blends = shares * colors + (1 - shares) * 0.85
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        np.round(255 * np.vstack([greys, *blends])).astype(int).ravel().tolist()
    )
    return palette


def write_animation(
    file: Path,
    title: str,
    surface: Surface,
    traces: Mapping[str, Trace],
    steps: Sequence[int],
    on_frame: Callable[[int], None],
) -> None:
    """Draw the paths as they grow, and write that as GIF or MP4.

    Args:
      file: What to write; its suffix says as what.
      title: Stands over it.
      surface: What the paths are on.
      traces: The paths, by name.
      steps: A frame shows the paths up to one of these.
      on_frame: Called with the number of each frame, from 0, when it is drawn. If it
        raises, no file is left.
    """
    figure = Figure(figsize=(7, 6), dpi=80, layout="constrained")
    panel = figure.subplots()
    draw_surface(panel, surface)
    lines = draw_lines(panel, traces)
    heads = [
        panel.plot([], [], "o", color=x.get_color(), mec="black")[0] for x in lines
    ]
    add_legend(figure, traces, columns=4)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # found once: to find it takes as long as to draw

    def draw(step: int) -> None:
        panel.set_title(f"{title}: step {step:,}")
        for line, head, trace in zip(lines, heads, traces.values(), strict=True):
            path = trace.points[: step + 1]
            line.set_data(*path.T)
            head.set_data(*path[-1:].T)

    animation = FuncAnimation(figure, draw, frames=steps, init_func=lambda: None)
    is_gif = file.suffix == ".gif"
    writer = (_GifWriter if is_gif else FFMpegWriter)(fps=FRAMES_PER_SECOND)
    try:
        animation.save(
            file,
            writer=writer,
            progress_callback=lambda frame, _count: on_frame(frame),
        )
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def choose_steps(steps: int, frames: int) -> list[int]:
    """Choose the steps that are shown: the first ones, where most happens, closer."""
    shares = np.linspace(0, 1, frames) ** 2
    return sorted({round(steps * share) for share in shares})
