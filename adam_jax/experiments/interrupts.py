"""Ctrl-C, kept out of JAX."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_interrupt(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` at Ctrl-C, in place of raising KeyboardInterrupt.

    Raised in the midst of JAX, that exception is sometimes lost, and sometimes
    followed by a crash when Python exits (seen with jax 0.10).
    """
    previous = signal.signal(signal.SIGINT, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
