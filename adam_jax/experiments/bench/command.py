"""`adam-jax bench`: measure, show, save."""

import functools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from adam_jax.experiments.arguments import shorten
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.charts import draw_rows
from adam_jax.experiments.bench.compiled import count_local, place, read_cost
from adam_jax.experiments.bench.plan import Cell, Plan, make_plan
from adam_jax.experiments.bench.problems import Problem, why_too_large
from adam_jax.experiments.bench.report import BenchReport
from adam_jax.experiments.bench.steppers import Stepper, compile_step, draw_grads
from adam_jax.experiments.bench.timing import compare
from adam_jax.experiments.drawing import to_picture
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.options import BenchOptions


def prepare(config: BenchOptions) -> Callable[[], None]:
    """Plan what the options say.

    Raises:
      ValueError: if one of them is unusable.
    """
    plan = make_plan(config)
    return lambda: run_bench(config, plan)


def run_bench(config: BenchOptions, plan: Plan) -> None:
    """Measure or compile what is planned; print a table, write JSON and the picture.

    Raises:
      KeyboardInterrupt: after Ctrl-C, at the end of the row. What is measured is saved.
    """
    machine = describe_machine()
    report = BenchReport(machine, len(plan.cells))
    for name, why in plan.missing.items():
        report.skip(name, why)
    rows: list[dict[str, Any]] = []
    stop = threading.Event()
    try:
        with on_interrupt(stop.set), report.display:
            for problem in dict.fromkeys(cell.problem for cell in plan.cells):
                cells = [cell for cell in plan.cells if cell.problem == problem]
                if not plan.compiled and (why := why_too_large(problem)):
                    report.skip(problem.name, why, len(cells))
                    continue
                make_rows = count if plan.compiled else measure
                for row in make_rows(plan, problem, cells, report):
                    rows.append(row)
                    report.show(row)
                    _write(config.json, machine, rows, report.skipped)
                    if stop.is_set():
                        raise KeyboardInterrupt
        _write(config.json, machine, rows, report.skipped)
    finally:
        report.print_tables(rows)
        if config.picture and rows:
            picture = to_picture(draw_rows(rows, machine), config.picture.suffix)
            config.picture.write_bytes(picture)


def measure(
    plan: Plan, problem: Problem, cells: list[Cell], report: BenchReport
) -> Iterator[dict[str, Any]]:
    """Measure the cells of one problem, base by base."""
    grads: dict[Any, list[jax.Array]] = {}

    def make(name: str, format_name: str) -> Stepper:
        format = FORMATS[format_name]
        if format.dtype not in grads:
            grads[format.dtype] = draw_grads(problem, format.dtype)
        return CANDIDATES[name].make(format, grads[format.dtype])

    # One base at a time is held in memory.
    for base_name in dict.fromkeys(cell.base for cell in cells):
        base = make(base_name, "float32")
        for cell in (cell for cell in cells if cell.base == base_name):
            report.start(cell)
            stepper = make(cell.candidate, cell.format)
            cycle = CANDIDATES[cell.candidate].cycle
            timing = compare(base, stepper, cycle, plan.repeats, plan.budget)
            count = problem.parameters
            yield _describe(cell) | {
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
            }


def count(
    plan: Plan, problem: Problem, cells: list[Cell], report: BenchReport
) -> Iterator[dict[str, Any]]:
    """Compile the cells of one problem and their bases, and run nothing."""

    @functools.cache
    def compile(name: str, format_name: str) -> dict[str, Any]:
        format, make = FORMATS[format_name], CANDIDATES[name].program
        assert make is not None  # it would not be in the plan
        program = make(format)
        shapes = [jax.ShapeDtypeStruct(x, format.dtype) for x in problem.shapes]
        params = place(shapes, plan.devices)
        state = place(jax.eval_shape(program.init, params), plan.devices)
        compiled, seconds = compile_step(program, params, state, params)
        cost, local = read_cost(compiled), count_local(params)
        return {
            "moved_bytes_per_parameter": cost.moved / local,
            "temporary_bytes_per_parameter": cost.temporary / local,
            "not_in_place_bytes_per_parameter": cost.not_in_place / local,
            "fusions": cost.fusions,
            "copies": cost.copies,
            "branches": cost.branches,
            "collectives": cost.collectives,
            "compile_seconds": seconds,
        }

    for cell in cells:
        report.start(cell)
        try:
            base = compile(cell.base, "float32")
            found = compile(cell.candidate, cell.format)
        except Exception as error:  # of any kind: it comes out of the compiler
            why = f"it does not compile: {shorten(str(error))}"
            report.skip(f"{problem.name} {cell.candidate}, {cell.format}", why, 1)
            continue
        yield _describe(cell) | {
            "compiled_for": plan.compiled,
            **found,
            "base_moved_bytes_per_parameter": base["moved_bytes_per_parameter"],
        }


def _describe(cell: Cell) -> dict[str, Any]:
    return {
        "size": cell.problem.name,
        "leaves": len(cell.problem.shapes),
        "parameters": cell.problem.parameters,
        "candidate": cell.candidate,
        "format": cell.format,
        "base": cell.base,
    }


def _write(
    path: Path | None, machine: Any, rows: list[dict[str, Any]], skipped: dict[str, str]
) -> None:
    """Write all that there is: a run that is interrupted has measured something."""
    if path is not None:
        content = {"machine": machine, "skipped": skipped, "rows": rows}
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
