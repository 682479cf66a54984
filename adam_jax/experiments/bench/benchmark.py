"""`adam-jax bench`: measure, show, save."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from adam_jax.experiments.arguments import shorten
from adam_jax.experiments.bench.bench_charts import draw_rows
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.compiled import count_local, place, read_cost
from adam_jax.experiments.bench.plan import Cell, Plan, make_plan
from adam_jax.experiments.bench.rows import BenchReport
from adam_jax.experiments.bench.sizes import Problem, why_too_large
from adam_jax.experiments.bench.steppers import Stepper, compile_step, draw_grads
from adam_jax.experiments.bench.timing import compare
from adam_jax.experiments.drawing import to_picture
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.options import BenchOptions

Found = Iterator[tuple[Cell, dict[str, Any]]]


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
    report = BenchReport(machine, len(plan.cells), config.json)
    for name, why in plan.missing.items():
        report.skip(name, why)
    stop = threading.Event()
    try:
        with on_interrupt(stop.set), report.display:
            for cell, found in (count if plan.devices else measure)(plan, report):
                row = {
                    "size": cell.problem.name,
                    "leaves": len(cell.problem.shapes),
                    "parameters": cell.problem.parameters,
                    "candidate": cell.candidate,
                    "format": cell.format,
                    "base": cell.base,
                }
                compiled = {"compiled_for": config.compiled} if config.compiled else {}
                report.rows.append(row | compiled | found)
                report.show(report.rows[-1])
                report.write()
                if stop.is_set():
                    raise KeyboardInterrupt
        report.write()
    finally:
        report.print_tables()
        if config.picture and report.rows:
            chart = draw_rows(report.rows, machine)
            config.picture.write_bytes(to_picture(chart, config.picture.suffix))


def measure(plan: Plan, report: BenchReport) -> Found:
    """Measure the cells, problem by problem."""
    for problem in dict.fromkeys(cell.problem for cell in plan.cells):
        cells = [cell for cell in plan.cells if cell.problem == problem]
        if why := why_too_large(problem):
            report.skip(problem.name, why, len(cells))
        else:
            yield from _measure_problem(plan, problem, cells, report)


def _measure_problem(
    plan: Plan, problem: Problem, cells: list[Cell], report: BenchReport
) -> Found:
    draw = functools.cache(functools.partial(draw_grads, problem))
    count = problem.parameters

    def make(name: str, format: str) -> Stepper:
        return CANDIDATES[name].make(FORMATS[format], draw(FORMATS[format].dtype))

    # One base at a time is held in memory.
    for base_name in dict.fromkeys(cell.base for cell in cells):
        base = make(base_name, "float32")
        for cell in (cell for cell in cells if cell.base == base_name):
            report.start(cell)
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


def count(plan: Plan, report: BenchReport) -> Found:
    """Compile the cells and their bases, and run nothing."""

    @functools.cache
    def compile(problem: Problem, name: str, format_name: str) -> dict[str, Any]:
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

    for cell in plan.cells:
        report.start(cell)
        try:
            base = compile(cell.problem, cell.base, "float32")
            found = compile(cell.problem, cell.candidate, cell.format)
        except Exception as error:  # of any kind: it comes out of the compiler
            name = f"{cell.problem.name} {cell.candidate}, {cell.format}"
            report.skip(name, f"it does not compile: {shorten(str(error))}", 1)
            continue
        moved = base["moved_bytes_per_parameter"]
        yield cell, found | {"base_moved_bytes_per_parameter": moved}
