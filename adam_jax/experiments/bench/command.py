"""`adam-jax bench`: measure, show, save."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jsonargparse import ArgumentParser, Namespace

from adam_jax.experiments.arguments import Command
from adam_jax.experiments.bench.arguments import build_parser, read_config
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.picture import draw_rows
from adam_jax.experiments.bench.plan import BenchConfig, Cell, Plan, make_plan
from adam_jax.experiments.bench.problems import Problem, why_too_large
from adam_jax.experiments.bench.report import BenchReport
from adam_jax.experiments.bench.steppers import Stepper, draw_grads
from adam_jax.experiments.bench.timing import compare
from adam_jax.experiments.interrupts import on_interrupt
from adam_jax.experiments.machine import describe_machine


def prepare(_parser: ArgumentParser, options: Namespace) -> Callable[[], None]:
    """Plan what the options say.

    Raises:
      ValueError: if one of them is unusable.
    """
    config = read_config(options)
    plan = make_plan(config)
    return lambda: run_bench(config, plan)


COMMAND = Command("time a step beside optax.adamw", build_parser, prepare)


def run_bench(config: BenchConfig, plan: Plan) -> None:
    """Measure what is planned; print a table, write JSON and the picture.

    Raises:
      KeyboardInterrupt: after Ctrl-C, at the end of the row. What is measured is saved.
    """
    machine = describe_machine()
    report = BenchReport(machine, len(plan.cells))
    for name, why in plan.missing.items():
        report.skip(f"without {name}: {why}")
    rows: list[dict[str, Any]] = []
    skipped = dict(plan.missing)
    stop = threading.Event()
    try:
        with on_interrupt(stop.set), report:
            for problem in dict.fromkeys(cell.problem for cell in plan.cells):
                cells = [cell for cell in plan.cells if cell.problem == problem]
                if why := why_too_large(problem):
                    report.skip(f"without {problem.name}: it {why}", len(cells))
                    skipped[problem.name] = why
                    continue
                for row in measure(plan, problem, cells, report):
                    rows.append(row)
                    report.show(row)
                    _write(config.json, machine, rows, skipped)
                    if stop.is_set():
                        raise KeyboardInterrupt
        _write(config.json, machine, rows, skipped)
    finally:
        report.print_tables(rows)
        if config.picture and rows:
            draw_rows(rows, machine).savefig(config.picture, dpi=130)


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
            yield {
                "size": problem.name,
                "leaves": len(problem.shapes),
                "parameters": count,
                "candidate": cell.candidate,
                "format": cell.format,
                "base": base_name,
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


def _write(
    path: Path | None, machine: Any, rows: list[dict[str, Any]], skipped: dict[str, str]
) -> None:
    """Write all that there is: a run that is interrupted has measured something."""
    if path is not None:
        content = {"machine": machine, "skipped": skipped, "rows": rows}
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
