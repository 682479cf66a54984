"""The leaves that a step is measured on, and the memory that they take."""

import math
import re
from typing import NamedTuple

import psutil

# A measured step and its base in float32: parameters, moments, updates and gradients,
# and what the diagnostics hold between their passes.
BYTES_PER_PARAMETER = 60

_GPT2_WIDTH, _GPT2_LAYERS = 768, 12
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
    """Read a size: `4096`, `2^12`, a shape `64,64`, 300 leaves `300x4096`, or `gpt2`.

    Raises:
      ValueError: if it is none of these.
    """
    if text == "gpt2":
        return Problem(text, _gpt2_shapes())
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


def _gpt2_shapes() -> tuple[tuple[int, ...], ...]:
    """Return the shapes of GPT-2 small (124M), whose output layer is its embedding."""
    width = _GPT2_WIDTH
    block = (
        *((width,), (width,)),  # ln_1
        *((width, 3 * width), (3 * width,)),  # attn.c_attn
        *((width, width), (width,)),  # attn.c_proj
        *((width,), (width,)),  # ln_2
        *((width, 4 * width), (4 * width,)),  # mlp.c_fc
        *((4 * width, width), (width,)),  # mlp.c_proj
    )
    embeddings = ((50257, width), (1024, width))
    return (*embeddings, *block * _GPT2_LAYERS, (width,), (width,))


def why_too_large(problem: Problem) -> str | None:
    """Return a sentence if the problem does not fit into the memory that is free."""
    needed = problem.parameters * BYTES_PER_PARAMETER
    free = psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"it needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} are free"
    )
