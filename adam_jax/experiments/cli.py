"""The entry point of the command line: what ends well, what does not, exit codes."""

import os
import sys
from collections.abc import Sequence

from adam_jax.experiments.interrupts import on_interrupt

INTERRUPTED = 130  # what shells report of a program that Ctrl-C has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and give the exit code.

    It is 0 after success, 1 if training diverged, 2 if the command line, the config,
    the run or the output folder is unusable, 130 after Ctrl-C.
    """
    try:
        with on_interrupt(_exit_at_once):
            return _run(argv)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")


def _run(argv: Sequence[str] | None) -> int:
    try:
        from adam_jax.experiments.arguments import Inspect, parse_arguments
        from adam_jax.experiments.bench.command import run_bench
        from adam_jax.experiments.bench.plan import BenchConfig
        from adam_jax.experiments.inspection import print_run
        from adam_jax.experiments.run import run_training
        from adam_jax.experiments.training import Diverged, Trainer
    except ModuleNotFoundError as error:
        return _fail(2, f"{error}: pip install 'adam_jax[experiments]' brings it")
    try:
        parsed = parse_arguments(argv)
        if parsed is None:
            return 2
        if isinstance(parsed, Inspect):
            print_run(parsed.run, parsed.as_json)
            return 0
        if isinstance(parsed, BenchConfig):
            run_bench(parsed)
            return 0
        trainer = Trainer(parsed.config)
    except ValueError as error:
        return _fail(2, str(error))
    try:
        run_training(trainer, parsed.resolved)
    except OSError as error:
        return _fail(2, f"cannot write the run: {error}")
    except Diverged as error:
        return _fail(1, str(error))
    return 0


def _exit_at_once() -> None:
    # Before training starts there is nothing to save.
    os._exit(_fail(INTERRUPTED, "interrupted"))


def _fail(code: int, message: str) -> int:
    print(f"adam-jax: error: {message}", file=sys.stderr, flush=True)
    return code
