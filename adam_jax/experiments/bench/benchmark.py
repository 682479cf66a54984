"""`adam-jax bench`: measure, show, save."""

import functools
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from adam_jax.experiments.bench.bench_charts import draw_rows
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.compiled import count_local, place, read_cost
from adam_jax.experiments.bench.plan import Cell, Plan, make_plan
from adam_jax.experiments.bench.rows import describe_row, print_tables
from adam_jax.experiments.bench.sizes import Problem
from adam_jax.experiments.bench.steppers import Stepper, compile_step, draw_grads
from adam_jax.experiments.bench.timing import compare
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.pictures.drawing import to_picture
from adam_jax.experiments.running.progress import Display
from adam_jax.experiments.settings.arguments import shorten
from adam_jax.experiments.settings.options import BenchOptions

Found = Iterator[tuple[Cell, dict[str, Any] | str]]  # figures, or why there are none


def prepare(config: BenchOptions) -> Callable[[], None]:
    """Plan what the options say, or raise a ValueError if one is unusable."""
    return functools.partial(run_bench, config, make_plan(config))


def run_bench(config: BenchOptions, plan: Plan) -> None:
    """Measure or compile what is planned; print tables, write JSON and the picture.

    Ctrl-C ends it after the row at work: what is measured is saved.
    """
    machine, skipped = describe_machine(), dict(plan.missing)
    rows: list[dict[str, Any]] = []
    display = Display("row", len(plan.cells), transient=True)
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    display.tell(f"{machine['cpu']}, {machine['cores']} cores; {versions}")
    load = machine["load_average"][0]
    if load > 0.5:
        display.tell(f"The machine is busy (load {load:.1f}): trust ratios, not times.")
    for name, why in skipped.items():
        display.tell(f"without {name}: {why}")

    def write() -> None:
        if config.json is not None:
            content = {"machine": machine, "skipped": skipped, "rows": rows}
            config.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    stop = threading.Event()
    try:
        with on_interrupt(stop.set), display:
            take = count if plan.devices else measure
            for done, (cell, found) in enumerate(take(plan, display), 1):
                display.reach(done)
                if isinstance(found, str):
                    skipped[str(cell)] = found
                    display.tell(f"without {cell}: {found}")
                    continue
                kind = {"compiled_for": config.compiled} if config.compiled else {}
                rows.append(cell.describe() | kind | found)
                display.note(f"{cell}: {describe_row(rows[-1])}")
                write()  # a run that is interrupted has measured something
                if stop.is_set():
                    raise KeyboardInterrupt
        write()
    finally:
        print_tables(display.console, rows)
        if config.picture and rows:
            picture = to_picture(draw_rows(rows, machine), config.picture.suffix)
            config.picture.write_bytes(picture)


def measure(plan: Plan, display: Display) -> Found:
    """Measure the cells, problem by problem."""
    for _, cells in itertools.groupby(plan.cells, key=lambda cell: cell.problem):
        yield from _measure_problem(plan, [*cells], display)


def _measure_problem(plan: Plan, cells: list[Cell], display: Display) -> Found:
    """Measure those of one problem, base by base."""
    problem = cells[0].problem
    draw = functools.cache(functools.partial(draw_grads, problem))
    count = problem.parameters

    def make(name: str, format: str) -> Stepper:
        return CANDIDATES[name].make(FORMATS[format], draw(FORMATS[format].dtype))

    # One base at a time is held in memory.
    for base_name in dict.fromkeys(cell.base for cell in cells):
        base = make(base_name, "float32")
        for cell in (cell for cell in cells if cell.base == base_name):
            display.label(str(cell))
            stepper = make(cell.candidate, cell.format)
            cycle = CANDIDATES[cell.candidate].cycle
            timing = compare(base, stepper, cycle, plan.repeats, plan.budget)
            yield (
                cell,
                {
                    "milliseconds": 1e3 * timing.seconds,
                    "base_milliseconds": 1e3 * timing.base_seconds,
                    "nanoseconds_per_parameter": 1e9 * timing.seconds / count,
                    "speed": timing.speed,
                    "speed_quartiles": timing.quartiles,
                    "pairs": timing.pairs,
                    "steps_in_a_turn": timing.steps,
                    "compile_seconds": stepper.compile_seconds,
                    "state_bytes_per_parameter": stepper.state_bytes / count,
                    "peak_bytes_per_parameter": stepper.peak_bytes / count,
                },
            )


def count(plan: Plan, display: Display) -> Found:
    """Compile the cells and their bases, and run nothing."""

    @functools.cache
    def compile(problem: Problem, name: str, format_name: str) -> dict[str, Any]:
        format = FORMATS[format_name]
        program = CANDIDATES[name].program(format)
        shapes = [jax.ShapeDtypeStruct(x, format.dtype) for x in problem.shapes]
        params = place(shapes, plan.devices)
        state = place(jax.eval_shape(program.init, params), plan.devices)
        compiled, seconds = compile_step(program, params, state, params)
        cost, local = read_cost(compiled)._asdict(), count_local(params)
        per_parameter = {
            f"{name}_bytes_per_parameter": cost.pop(name) / local
            for name in ("moved", "temporary", "not_in_place")
        }
        return per_parameter | cost | {"compile_seconds": seconds}

    for cell in plan.cells:
        display.label(str(cell))
        try:
            base = compile(cell.problem, cell.base, "float32")
            found = compile(cell.problem, cell.candidate, cell.format)
        except Exception as error:  # of any kind: it comes out of the compiler
            yield cell, f"it does not compile: {shorten(str(error))}"
            continue
        moved = base["moved_bytes_per_parameter"]
        yield cell, found | {"base_moved_bytes_per_parameter": moved}
