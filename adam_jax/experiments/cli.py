"""The entry point of the command line: what ends well, what does not, exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence

from adam_jax.experiments.interrupts import Diverged, Faulty, Interrupted, on_interrupt

# XLA on CPU may wait for ever in a program that decomposes matrices, if it runs what is
# independent in it side by side (14 members of soap on two cores: jax 0.10.2).
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
# What shells report of a program that Ctrl-C has ended, or nobody reads any more.
INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and give the exit code.

    It is 0 after success, 1 if training diverged, 2 if the command line, the config,
    the run or the output folder is unusable, 130 after Ctrl-C, 143 after SIGTERM,
    141 where nobody reads what is printed.
    """
    os.environ["XLA_FLAGS"] = f"{IN_ORDER} {os.environ.get('XLA_FLAGS', '')}"
    try:
        with on_interrupt(_exit_at_once):
            return _run(argv)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")


def _run(argv: Sequence[str] | None) -> int:
    try:
        from adam_jax.experiments.commands import prepare

        run = prepare(argv)
    except ModuleNotFoundError as error:
        return _fail(2, f"{error}: pip install 'adam_jax[experiments]' brings it")
    except ValueError as error:
        return _fail(2, str(error))
    except Faulty as error:
        traceback.print_exception(error.__cause__)
        return _fail(2, str(error))
    if run is None:
        return 2
    try:
        run()
        sys.stdout.flush()
    except BrokenPipeError:  # as in `adam-jax configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        return _fail(2, f"cannot write the results: {error}")
    except (Interrupted, Diverged) as error:
        return _fail(error.code, str(error))
    return 0


def _exit_at_once() -> None:
    # Before training starts there is nothing to save.
    os._exit(_fail(INTERRUPTED, "interrupted"))


def _fail(code: int, message: str) -> int:
    print(f"adam-jax: error: {message}", file=sys.stderr, flush=True)
    return code
