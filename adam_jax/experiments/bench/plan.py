"""What a run of the benchmark measures, from the options of the command line."""

from collections.abc import Iterable
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
from adam_jax.experiments.bench.sizes import Problem, parse_size, why_too_large
from adam_jax.experiments.pictures.drawing import PICTURES
from adam_jax.experiments.settings.config import require_known
from adam_jax.experiments.settings.options import BenchOptions

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
SECONDS, QUICK_SECONDS = 10.0, 0.2  # after which fewer pairs will do


class Cell(NamedTuple):
    """One row to measure: which candidate in which format, beside which base."""

    problem: Problem
    candidate: str
    format: str
    base: str

    def __str__(self) -> str:
        """Name it, but for the base."""
        return f"{self.problem.name} {self.candidate}, {self.format}"

    def describe(self) -> dict[str, Any]:
        """Give what identifies the row."""
        return {
            "size": self.problem.name,
            "leaves": len(self.problem.shapes),
            "parameters": self.problem.parameters,
            "candidate": self.candidate,
            "format": self.format,
            "base": self.base,
        }


class Plan(NamedTuple):
    """What to do."""

    cells: list[Cell]
    missing: dict[str, str]  # why a candidate or a problem is left out
    repeats: int  # pairs of turns
    budget: float  # seconds after which fewer pairs will do
    devices: list[Any]  # to compile for; if there are none, steps are timed


def make_plan(config: BenchOptions) -> Plan:
    """Return what is to be done; a ValueError says which option is unusable."""
    if config.compiled and (config.repeats or config.picture):
        raise ValueError("what is compiled is not run: leave out repeats and picture")
    repeats, budget = REPEATS, SECONDS
    sizes, formats = SIZES, TIMED_FORMATS
    if config.quick:
        repeats, budget = QUICK_REPEATS, QUICK_SECONDS
        sizes, formats = QUICK_SIZES, QUICK_FORMATS
    elif config.compiled:
        sizes, formats = COMPILED_SIZES, tuple(FORMATS)
    names = COMPILED if config.compiled else tuple(CANDIDATES)
    if config.repeats is not None:
        repeats = config.repeats
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}, but must be 2 or more")
    for path in (config.json, config.picture):
        if path is not None:
            _expect_writable(path)
    if config.picture is not None and config.picture.suffix not in PICTURES:
        raise ValueError(
            f"cannot draw {config.picture}: its name must end in .png, .svg or .pdf"
        )
    problems = [parse_size(text) for text in config.sizes or sizes]
    formats = _expect_known("format", config.formats or formats, FORMATS)
    names = _expect_known("candidate", config.candidates or names, CANDIDATES)
    forced = _expect_known("base", [config.base] if config.base else [], CANDIDATES)
    missing = {
        name: why
        for name in CANDIDATES
        if (why := why_missing(CANDIDATES[name], bool(config.compiled)))
    }
    for name in (*config.candidates, *forced):
        if name in missing:
            raise ValueError(f"{name} cannot be measured here: {missing[name]}")
    everything = not (config.sizes or config.candidates or config.compiled)
    wrapped = () if config.quick else WRAPPERS_SIZES
    cells = [
        Cell(problem, name, format, *(forced or [CANDIDATES[name].base]))
        for problem in problems
        for name in names
        if name not in missing
        and not (everything and name in WRAPPERS and problem.name not in wrapped)
        for format in CANDIDATES[name].formats
        if format in formats
    ]
    if not cells:
        raise ValueError(f"no candidate that is left knows {' or '.join(formats)}")
    missing = {name: why for name, why in missing.items() if name in names}
    if config.compiled:
        return Plan(cells, missing, repeats, budget, find_devices(config.compiled))
    too_large = {x.name: why for x in problems if (why := why_too_large(x))}
    cells = [cell for cell in cells if cell.problem.name not in too_large]
    return Plan(cells, missing | too_large, repeats, budget, [])


def why_missing(candidate: Candidate, compiled: bool = False) -> str | None:
    """Return a sentence if a candidate cannot be timed here, or not be compiled."""
    if compiled and candidate.make_tx is None:
        return "JAX does not compile it"
    if not compiled and candidate.fuse and fused.backend() == "xla":
        return "there is no kernel for it here"
    return candidate.why_missing()


def _expect_known(what: str, chosen: Iterable[str], known: dict[str, Any]) -> list[str]:
    """Return what is chosen, each once."""
    for name in chosen:
        require_known(what, name, known, "one of those in adam-jax bench --help")
    return list(dict.fromkeys(chosen))


def _expect_writable(path: Path) -> None:
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    if not existed:
        path.unlink()
