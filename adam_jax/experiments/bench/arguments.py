"""What `adam-jax bench` is told."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace


class Format(NamedTuple):
    """How the moments are stored, and the dtype of parameters and gradients."""

    mu: Any
    nu: Any
    dtype: Any


FORMATS = {
    "float32": Format("float32", "float32", "float32"),
    "bfloat16": Format("bfloat16", "bfloat16", "float32"),
    "8bit": Format("8bit", "8bit", "float32"),
    "pure_bfloat16": Format("bfloat16", "bfloat16", "bfloat16"),
    "pure_8bit": Format("8bit", "8bit", "bfloat16"),
    "mu_bfloat16": Format("bfloat16", "float32", "float32"),
    "pure_float32": Format("float32", "float32", "bfloat16"),
}
# The others only if asked for: their times lie between those of these.
TIMED_FORMATS = ("float32", "bfloat16", "8bit", "pure_bfloat16", "pure_8bit")


SIZES = (
    *("2^12", "2^16", "2^20", "2^22", "2^24", "2^26"),
    *("150x2^17", "300x4096", "1000x64", "gpt2"),
)
QUICK_SIZES, QUICK_FORMATS = ("2^12", "2^16"), ("float32", "8bit")
WRAPPERS_SIZES = ("2^24", "150x2^17")
# On TPU, leaves that are smaller lie in VMEM as a whole.
COMPILED_SIZES = ("16384,8192",)
COMPILED = ("optax", "adamw", "fused_step", "compensated")
COMPILED += ("skip_nonfinite", "skip_spikes", "record_one", "record_default")
REPEATS, QUICK_REPEATS = 25, 3


# Of each kind, the 16 chips out of which one is compiled for.
CHIPS = {"v5e": "4x4", "v5p": "2x2x4", "v6e": "4x4", "h100": "1x1x16"}


@dataclasses.dataclass
class BenchConfig:
    """The options of `adam-jax bench`.

    Attributes:
      sizes: as `parse_size` reads them; None: all of `SIZES`, or one if compiled.
      formats: names of `FORMATS`; None: five, two if quick, or all if compiled.
      candidates: names of `CANDIDATES`; None: those that are installed.
      compiled: a machine, as `find_devices` reads it: compile for it, run nothing.
      base: measure beside this candidate, whatever the candidates' own bases are.
      repeats: pairs of turns; None: 25, or 3 if quick.
      quick: tiny sizes, two formats, few pairs, no diagnostics.
      json: a file for the figures.
      picture: a file for the picture.
    """

    sizes: Sequence[str] | None = None
    formats: Sequence[str] | None = None
    candidates: Sequence[str] | None = None
    compiled: str | None = None
    base: str | None = None
    repeats: int | None = None
    quick: bool = False
    json: Path | None = None
    picture: Path | None = None


def read_config(options: Namespace) -> BenchConfig:
    """Turn what the parser returned into a config."""
    values = {k: v for k, v in vars(options).items() if k != "config"}
    for name in ("json", "picture"):
        values[name] = values[name] and Path(values[name])
    return BenchConfig(**values)
