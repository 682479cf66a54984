"""What ends a run early: divergence, and Ctrl-C and SIGTERM, kept out of JAX."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Diverged(RuntimeError):
    """Tell that a run cannot go on."""

    code = 1


class Faulty(Exception):
    """Tell that code of a problem of one's own raised an error, which is the cause."""


class Interrupted(Exception):
    """Tell that a signal has ended the work, and how to go on."""

    def __init__(self, message: str, number: int):
        """Take what is told, and the number of the signal."""
        super().__init__(message)
        self.code = 128 + number  # the exit code, as shells report it


@contextmanager
def on_interrupt(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` at Ctrl-C, in place of raising KeyboardInterrupt.

    Raised in the midst of JAX, that exception is sometimes lost, and sometimes
    followed by a crash when Python exits (seen with jax 0.10).
    """
    with on_signals(lambda _: handler(), signal.SIGINT):
        yield


@contextmanager
def on_signals(handler: Callable[[int], None], *numbers: int) -> Iterator[None]:
    """Call `handler` with the number of the signal, at each of these."""
    previous = {
        number: signal.signal(number, lambda number, _: handler(number))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
