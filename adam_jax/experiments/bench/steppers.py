"""What is timed: objects that take steps of an optimizer on arrays of their own."""

import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.experiments.bench.problems import Problem
from adam_jax.experiments.machine import cores

LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-4


class Stepper(Protocol):
    """Takes steps.

    Attributes:
      compile_seconds: to trace and compile a step; None where nothing is compiled.
      state_bytes: the bytes of the optimizer's state, once a step is taken.
      peak_bytes: those of parameters, gradients, state and what a step takes beside
        them.
    """

    compile_seconds: float | None
    state_bytes: int
    peak_bytes: int

    def run(self, steps: int) -> None:
        """Take steps, and return when the last is done."""

    def params(self) -> list[np.ndarray]:
        """Copy the parameters, as float32."""
        ...


class Program(NamedTuple):
    """An optimizer as JAX compiles it.

    Attributes:
      init: params -> state.
      step: (params, state, grads) -> (params, state); donates the first two.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], Any]


def draw_grads(problem: Problem, dtype: Any) -> list[jax.Array]:
    """Draw normal gradients, an array of its own for each leaf."""
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    keys = jax.random.split(jax.random.key(0), len(problem.shapes))
    return [
        draw(key, shape, dtype) for key, shape in zip(keys, problem.shapes, strict=True)
    ]


def compile_step(
    program: Program, params: Any, state: Any, grads: Any
) -> tuple[Any, float]:
    """Compile a step for arrays, or for their shapes; return it and the seconds."""
    start = time.perf_counter()
    jitted = jax.jit(program.step, donate_argnums=(0, 1))
    compiled = jitted.lower(params, state, grads).compile()
    return compiled, time.perf_counter() - start


class JaxStepper:
    """A jitted step that donates parameters and state."""

    compile_seconds: float | None

    def __init__(self, program: Program, grads: Sequence[jax.Array]):
        """Start at zero."""
        self._grads = grads
        self._params = [jnp.zeros_like(grad) for grad in grads]
        self._state = jax.jit(program.init)(self._params)
        self._step, self.compile_seconds = compile_step(
            program, self._params, self._state, grads
        )
        memory: Any = self._step.memory_analysis()
        self.peak_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self._state))

    def run(self, steps: int) -> None:
        """Take steps."""
        for _ in range(steps):
            self._params, self._state = self._step(
                self._params, self._state, self._grads
            )
        jax.block_until_ready((self._params, self._state))

    def params(self) -> list[np.ndarray]:
        """Copy the parameters."""
        return [np.array(param, np.float32) for param in self._params]


class BareLoop:
    """The package's bare C++ loop: the limit on this machine."""

    compile_seconds: float | None = None

    def __init__(self, grads: Sequence[jax.Array]):
        """Take float32 gradients."""
        self._grads = grads
        # XLA's memory, as of all others: NumPy asks Linux for larger pages.
        self._params, self._mu, self._nu = (
            jax.block_until_ready([jnp.zeros_like(grad) for grad in grads])
            for _ in range(3)
        )
        size = sum(grad.nbytes for grad in grads)
        self.state_bytes, self.peak_bytes = 2 * size, 4 * size
        self._past = 0
        library = _build_bare_loop()
        count = len(grads)
        self._step = functools.partial(
            library.AdamJaxBareLoop,
            ctypes.c_int64(count),
            (ctypes.c_int64 * count)(*(grad.size for grad in grads)),
            *map(_pointers, (self._params, grads, self._mu, self._nu)),
            *map(ctypes.c_float, (LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY)),
        )

    def run(self, steps: int) -> None:
        """Take steps, in the memory of the arrays themselves."""
        self._step(*map(ctypes.c_int64, (self._past, steps, cores())))
        self._past += steps

    def params(self) -> list[np.ndarray]:
        """Copy the parameters."""
        return [np.array(param) for param in self._params]


def find_compiler() -> str | None:
    """Return the C++ compiler that builds the bare loop, or None."""
    return shutil.which(os.environ.get("CXX", "c++"))


@functools.cache
def _build_bare_loop() -> ctypes.CDLL:
    """Compile the loop, which no step of the package needs, for this machine."""
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("there is no C++ compiler to build the bare loop with.")
    source = pathlib.Path(__file__).with_name("bare_loop.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, "bare_loop.so")
        flags = ["-O3", "-std=c++17", "-fPIC", "-shared", "-pthread"]
        flags += ["-fno-math-errno", "-fno-trapping-math"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))  # stays loaded when the file is gone


def _pointers(arrays: Sequence[jax.Array]) -> Any:
    addresses = (array.unsafe_buffer_pointer() for array in arrays)
    return (ctypes.c_void_p * len(arrays))(*addresses)


class TorchStepper:
    """PyTorch's AdamW in its fused form, on all cores."""

    compile_seconds: float | None = None
    state_bytes = peak_bytes = 0

    def __init__(self, grads: Sequence[jax.Array]):
        """Take float32 gradients."""
        import torch  # pyright: ignore[reportMissingImports] (no dependency)

        torch.set_num_threads(cores())
        self._params = [torch.zeros(grad.shape, requires_grad=True) for grad in grads]
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = torch.from_dlpack(grad)
        self._optimizer = self._make(self._params)

    def _make(self, params: Any) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        return torch.optim.AdamW(
            params, LEARNING_RATE, (B1, B2), EPS, WEIGHT_DECAY, fused=True
        )

    def run(self, steps: int) -> None:
        """Take steps, the first of which makes the state."""
        for _ in range(steps):
            self._optimizer.step()
        if not self.state_bytes:
            kept = [x for own in self._optimizer.state.values() for x in own.values()]
            self.state_bytes = sum(x.nbytes for x in kept if hasattr(x, "nbytes"))
            self.peak_bytes = 2 * sum(x.nbytes for x in self._params) + self.state_bytes

    def params(self) -> list[np.ndarray]:
        """Copy the parameters."""
        return [param.detach().numpy().copy() for param in self._params]


class BitsandbytesStepper(TorchStepper):
    """The 8-bit AdamW of bitsandbytes, on all cores."""

    def _make(self, params: Any) -> Any:
        import bitsandbytes  # pyright: ignore[reportMissingImports] (no dependency)

        return bitsandbytes.optim.AdamW8bit(
            params, LEARNING_RATE, (B1, B2), EPS, WEIGHT_DECAY
        )
