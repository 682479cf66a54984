"""The animation of paths: all optimizers side by side, step by step."""

import io
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from adam_jax.experiments.pictures.drawing import COLOURS, frame_panel, to_picture
from adam_jax.experiments.running.folder import replace_file
from adam_jax.experiments.trace.path_charts import (
    HEIGHT,
    MARKS,
    WIDTH,
    chart_surface,
    list_looks,
)
from adam_jax.experiments.trace.paths import Trace
from adam_jax.experiments.trace.surfaces import Surface

FRAME_MILLISECONDS = 50
FINE = 3  # lines are drawn so many times as large, then made small: they are smooth


def choose_steps(steps: int, frames: int) -> list[int]:
    """Choose the steps that are shown: the first ones, where most happens, closer."""
    shares = np.linspace(0, 1, frames) ** 2
    return sorted({round(steps * share) for share in shares})


def draw_frames(
    title: str, surface: Surface, traces: Mapping[str, Trace], steps: Sequence[int]
) -> Iterator[Image.Image]:
    """Draw the paths up to each of the steps: the surface once, then what is new."""
    empty = {name: x._replace(points=x.points[:0]) for name, x in traces.items()}
    chart, left, top = frame_panel(chart_surface(surface, empty), WIDTH, HEIGHT)
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
    for before, step in zip([0, *steps], steps, strict=False):
        for path, look in zip(paths, looks, strict=True):
            new = [tuple(point) for point in path[before : step + 1].tolist()]
            if len(new) > 1:
                pen.line(new, look.colour, round(FINE * look.width), joint="curve")
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


def write_animation(file: Path, frames: Iterable[Image.Image]) -> None:
    """Write frames as the GIF or the film that the name of the file asks for."""
    # With one palette, only what is new of each frame is written: a tenth of the bytes.
    palette = _make_palette()
    first, *others = (
        frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
    )
    gif = io.BytesIO()
    first.save(
        gif,
        "gif",
        save_all=True,
        append_images=others,
        optimize=True,
        duration=FRAME_MILLISECONDS,
        loop=0,
    )
    if file.suffix == ".gif":
        replace_file(file, lambda out: out.write(gif.getvalue()))
        return
    even = ("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p")
    command = ("ffmpeg", "-loglevel", "error", "-y", "-i", "-", *even, str(file))
    if subprocess.run(command, input=gif.getvalue()).returncode:
        file.unlink(missing_ok=True)
        raise OSError(f"{file}: ffmpeg has failed")


def _make_palette() -> Image.Image:
    """Give greys, and what the edges of coloured lines blend into on pale grey."""
    greys = np.linspace(0, 255, 64)[:, None].repeat(3, axis=1)
    marks = (*COLOURS, MARKS["minimum"].colour)
    colours = np.array([ImageColor.getrgb(colour) for colour in marks])
    shares = np.linspace(0.2, 1, 8)[:, None, None]
    blends = (shares * colours + (1 - shares) * 217).reshape(-1, 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.vstack([greys, blends]).round().astype(int).ravel().tolist())
    return palette
