"""What a run of the benchmark measures, from the options of the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adam_jax import fused
from adam_jax.experiments.bench.candidates import (
    CANDIDATES,
    FORMATS,
    TIMED_FORMATS,
    WRAPPERS,
    Candidate,
)
from adam_jax.experiments.bench.compiled import find_devices
from adam_jax.experiments.bench.problems import Problem, parse_size
from adam_jax.experiments.drawing import PICTURES
from adam_jax.experiments.options import BenchOptions

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


class Cell(NamedTuple):
    """One row to measure: which candidate in which format, beside which base."""

    problem: Problem
    candidate: str
    format: str
    base: str


class Plan(NamedTuple):
    """What to do.

    Attributes:
      cells: the rows to measure.
      repeats: pairs of turns.
      budget: seconds after which fewer pairs will do.
      missing: {candidate: why it is left out}.
      compiled: the machine to compile for; None if steps are timed.
      devices: its devices.
    """

    cells: list[Cell]
    repeats: int
    budget: float
    missing: dict[str, str]
    compiled: str | None
    devices: list[Any]


def make_plan(config: BenchOptions) -> Plan:
    """Return the rows to measure; a base comes before the rows beside it.

    Raises:
      ValueError: if an option is unusable, in one sentence.
    """
    if config.compiled and (config.repeats or config.picture):
        raise ValueError("what is compiled is not run: leave out repeats and picture")
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
    sizes, usual = SIZES, TIMED_FORMATS
    if config.quick:
        sizes, usual = QUICK_SIZES, QUICK_FORMATS
    elif config.compiled:
        sizes, usual = COMPILED_SIZES, tuple(FORMATS)
    problems = [parse_size(text) for text in config.sizes or sizes]
    formats = _choose("format", config.formats or usual, FORMATS)
    some = COMPILED if config.compiled else None
    names = _choose("candidate", config.candidates or some, CANDIDATES)
    [forced] = _choose("base", [config.base], CANDIDATES) if config.base else [None]
    missing = {
        name: why
        for name, candidate in CANDIDATES.items()
        if (why := why_missing(candidate, bool(config.compiled)))
    }
    for name in (*config.candidates, forced):
        if name in missing:
            raise ValueError(f"{name} cannot be measured here: {missing[name]}")
    everything = not (config.sizes or config.candidates or config.compiled)
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
    return Plan(
        cells,
        repeats,
        budget=0.2 if config.quick else 10.0,
        missing={k: v for k, v in missing.items() if k in names},
        compiled=config.compiled,
        devices=find_devices(config.compiled) if config.compiled else [],
    )


def why_missing(candidate: Candidate, compiled: bool = False) -> str | None:
    """Return a sentence if a candidate cannot be timed here, or not be compiled."""
    if compiled and candidate.program is None:
        return "JAX does not compile it"
    if not compiled and candidate.needs_kernel and fused.backend() == "xla":
        return "there is no kernel for it here"
    return candidate.why_missing()


def _is_left_out(name: str, problem: Problem, quick: bool) -> bool:
    return name in WRAPPERS and (quick or problem.name not in WRAPPERS_SIZES)


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
    if path.suffix not in PICTURES:
        raise ValueError(f"cannot draw {path}: its name must end in .png, .svg or .pdf")
