"""What a run of the benchmark measures, from the options of the command line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from adam_jax.experiments.bench.candidates import CANDIDATES, DIAGNOSTICS, FORMATS
from adam_jax.experiments.bench.problems import Problem, parse_size

SIZES = (
    *("2^12", "2^16", "2^20", "2^22", "2^24", "2^26"),
    *("150x2^17", "300x4096", "1000x64", "gpt2"),
)
QUICK_SIZES, QUICK_FORMATS = ("2^12", "2^16"), ("float32", "8bit")
# Elsewhere only if asked for: they compile long, and take a hundred steps at a time.
DIAGNOSTICS_SIZES = ("2^24", "150x2^17")
REPEATS, QUICK_REPEATS = 25, 3


@dataclasses.dataclass
class BenchConfig:
    """The options of `adam-jax bench`.

    Attributes:
      sizes: as `parse_size` reads them; None: all of `SIZES`.
      formats: names of `FORMATS`; None: all, or two if quick.
      candidates: names of `CANDIDATES`; None: those that are installed.
      base: measure beside this candidate, whatever the candidates' own bases are.
      repeats: pairs of turns; None: 25, or 3 if quick.
      quick: tiny sizes, two formats, few pairs, no diagnostics.
      json: a file for the figures.
      picture: a file for the picture.
    """

    sizes: Sequence[str] | None = None
    formats: Sequence[str] | None = None
    candidates: Sequence[str] | None = None
    base: str | None = None
    repeats: int | None = None
    quick: bool = False
    json: Path | None = None
    picture: Path | None = None


class Cell(NamedTuple):
    """One row to measure: which candidate in which format, beside which base."""

    problem: Problem
    candidate: str
    format: str
    base: str


class Plan(NamedTuple):
    """The rows to measure, how long each, and {candidate: why it is left out}."""

    cells: list[Cell]
    repeats: int
    budget: float
    missing: dict[str, str]


def make_plan(config: BenchConfig) -> Plan:
    """Return the rows to measure; a base comes before the rows beside it.

    Raises:
      ValueError: if an option is unusable, in one sentence.
    """
    repeats = config.repeats
    if repeats is None:
        repeats = QUICK_REPEATS if config.quick else REPEATS
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}, but must be 2 or more")
    for path in (config.json, config.picture):
        if path is not None:
            _expect_writable(path)
    if config.picture is not None:
        _expect_picture(config.picture)
    problems = [
        parse_size(text)
        for text in config.sizes or (QUICK_SIZES if config.quick else SIZES)
    ]
    quick_formats = QUICK_FORMATS if config.quick else None
    formats = _choose("format", config.formats or quick_formats, FORMATS)
    names = _choose("candidate", config.candidates, CANDIDATES)
    [forced] = _choose("base", [config.base], CANDIDATES) if config.base else [None]
    missing = {
        name: why for name in CANDIDATES if (why := CANDIDATES[name].why_missing())
    }
    for name in (*(config.candidates or ()), *([forced] if forced else ())):
        if name in missing:
            raise ValueError(f"{name} cannot be measured here: {missing[name]}")
    everything = config.sizes is None and config.candidates is None
    cells = [
        Cell(problem, name, format, forced or CANDIDATES[name].base)
        for problem in problems
        for name in names
        if name not in missing
        and not (everything and _is_left_out(name, problem, config.quick))
        for format in CANDIDATES[name].formats
        if format in formats
    ]
    if not cells:
        raise ValueError(f"no candidate that is left knows {' or '.join(formats)}")
    budget = 0.2 if config.quick else 10.0
    return Plan(
        cells, repeats, budget, {k: v for k, v in missing.items() if k in names}
    )


def _is_left_out(name: str, problem: Problem, quick: bool) -> bool:
    return name in DIAGNOSTICS and (quick or problem.name not in DIAGNOSTICS_SIZES)


def _choose(
    what: str, chosen: Sequence[str] | None, known: dict[str, Any]
) -> Sequence[str]:
    for name in chosen or ():
        if name not in known:
            raise ValueError(
                f"{what} {name!r} is unknown: choose from {', '.join(known)}"
            )
    return list(dict.fromkeys(chosen)) if chosen else list(known)


def _expect_writable(path: Path) -> None:
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    if not existed:
        path.unlink()


def _expect_picture(path: Path) -> None:
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise ValueError(f"cannot draw {path}: its name must end in .png, .svg or .pdf")
