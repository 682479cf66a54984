"""The animation of paths: all optimizers side by side, step by step."""

import io
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from adam_jax.experiments.drawing import COLOURS, frame_panel, to_picture
from adam_jax.experiments.trace.charts import (
    HEIGHT,
    MINIMUM,
    WIDTH,
    chart_surface,
    list_looks,
)
from adam_jax.experiments.trace.paths import Trace
from adam_jax.experiments.trace.surfaces import Surface

FRAMES_PER_SECOND = 20
FINE = (
    3  # lines are drawn so many times as large, and made small again: they are smooth
)


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

    def draw() -> Iterator[Image.Image]:
        frames = draw_frames(title, surface, traces, steps)
        for number, frame in enumerate(frames):
            yield frame
            on_frame(number)

    try:
        (_write_gif if file.suffix == ".gif" else _write_film)(file, draw())
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def draw_frames(
    title: str, surface: Surface, traces: Mapping[str, Trace], steps: Sequence[int]
) -> Iterator[Image.Image]:
    """Draw the frames: the surface once, and on it what is new of each path.

    Args:
      title: Stands over them.
      surface: What the paths are on.
      traces: The paths, by name.
      steps: A frame shows the paths up to one of these.
    """
    chart, left, top = frame_panel(chart_surface(surface, traces), WIDTH, HEIGHT)
    background = Image.open(io.BytesIO(to_picture(chart, scale=1.0))).convert("RGB")
    large = (FINE * WIDTH, FINE * HEIGHT)
    box = (left, top, left + WIDTH, top + HEIGHT)
    canvas = background.crop(box).resize(large)
    pen = ImageDraw.Draw(canvas)
    (low_x, high_x), (low_y, high_y) = surface.bounds
    corner, size = np.array([low_x, high_y]), np.array([high_x - low_x, low_y - high_y])
    # What lies far outside is cut off, where it can still be drawn.
    paths = [
        np.clip((trace.points - corner) / size, -9, 9) * large
        for trace in traces.values()
    ]
    looks = list_looks(traces).values()
    font = ImageFont.load_default(15)
    before = 0
    for step in steps:
        for path, look in zip(paths, looks, strict=True):
            new = path[before : step + 1]
            width = round(FINE * look.width)
            if len(new) > 1:
                points = [tuple(point) for point in new.tolist()]
                pen.line(points, look.colour, width, joint="curve")
        before = step
        shown = canvas.copy()
        heads = ImageDraw.Draw(shown)
        for path, look in zip(paths, looks, strict=True):
            at = path[: step + 1][-1].tolist()
            heads.circle(at, 4 * FINE, look.colour, "black", FINE)
        frame = background.copy()
        frame.paste(shown.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), box)
        words = ImageDraw.Draw(frame)
        words.text((left, 8), f"{title}: step {step:,}", "black", font)
        yield frame


def _write_gif(file: Path, frames: Iterator[Image.Image]) -> None:
    """Write one palette, and of each frame only what is new: a tenth of the bytes."""
    drawn = list(frames)
    palette = _make_palette()
    first, *others = (
        frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn
    )
    first.save(
        file,
        save_all=True,
        append_images=others,
        optimize=True,
        duration=1000 // FRAMES_PER_SECOND,
        loop=0,
    )


def _make_palette() -> Image.Image:
    """Give greys, and what the edges of coloured lines blend into on pale grey."""
    greys = np.linspace(0, 255, 64)[:, None].repeat(3, axis=1)
    colors = np.array([ImageColor.getrgb(x) for x in (*COLOURS, MINIMUM.colour)])
    shares = np.linspace(0.2, 1, 8)[:, None, None]
    blends = (shares * colors + (1 - shares) * 217).reshape(-1, 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        np.round(np.vstack([greys, blends])).astype(int).ravel().tolist()
    )
    return palette


def _write_film(file: Path, frames: Iterator[Image.Image]) -> None:
    """Hand the frames to ffmpeg, as one PNG after the other."""
    rate = ("-framerate", str(FRAMES_PER_SECOND))
    even = ("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p")
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "image2pipe", *rate]
    with subprocess.Popen(
        [*command, "-i", "-", *even, str(file)], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        for frame in frames:
            frame.save(process.stdin, "png")
        process.stdin.close()
    if process.returncode:
        raise OSError(f"{file}: ffmpeg has failed")


def choose_steps(steps: int, frames: int) -> list[int]:
    """Choose the steps that are shown: the first ones, where most happens, closer."""
    shares = np.linspace(0, 1, frames) ** 2
    return sorted({round(steps * share) for share in shares})
