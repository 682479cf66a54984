"""The leaves that a step is measured on, and the memory that they take."""

import math
import re
from typing import NamedTuple

import psutil

# A measured step and its base in float32: parameters, moments, updates and gradients,
# and what the diagnostics hold between their passes.
BYTES_PER_PARAMETER = 60

_NUMBER = r"[1-9]\d*(?:\^\d{1,2})?"
_GRAMMAR = re.compile(rf"(?:([1-9]\d*)x)?({_NUMBER}(?:,{_NUMBER})*)")


class Problem(NamedTuple):
    """A name, and the shapes of the leaves."""

    name: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def parameters(self) -> int:
        """Count the parameters."""
        return sum(math.prod(shape) for shape in self.shapes)


def parse_size(text: str) -> Problem:
    """Read a size: `4096`, `2^12`, a shape `64,64`, leaves `300x4096`, or `gpt2`."""
    if text == "gpt2":
        return Problem(text, _list_gpt2())
    match = _GRAMMAR.fullmatch(text)
    if not match:
        raise ValueError(
            f"size {text!r} is unknown: give a number of parameters as 4096 or 2^12, "
            "a shape as 64,2^6, leaves of one size as 300x4096 or 12x64,64, or gpt2"
        )
    leaves, shape = match.groups()
    powers = [axis.partition("^") for axis in shape.split(",")]
    axes = tuple(int(base) ** int(exponent or 1) for base, _, exponent in powers)
    return Problem(text, (axes,) * int(leaves or 1))


def _list_gpt2(width: int = 768, layers: int = 12) -> tuple[tuple[int, ...], ...]:
    """Give the shapes of GPT-2 small (124M), whose output layer is its embedding."""
    norm = (width,), (width,)
    attention = (width, 3 * width), (3 * width,), (width, width), (width,)
    dense = (width, 4 * width), (4 * width,), (4 * width, width), (width,)
    block = (*norm, *attention, *norm, *dense)
    return ((50257, width), (1024, width), *block * layers, *norm)


def why_too_large(problem: Problem) -> str | None:
    """Give a sentence if the problem does not fit into the memory that is free."""
    needed = problem.parameters * BYTES_PER_PARAMETER / 1e9
    free = psutil.virtual_memory().available / 1e9
    if needed <= free:
        return None
    return f"it needs about {needed:.1f} GB of memory, and {free:.1f} are free"
