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

from adam_jax.experiments.bench.sizes import Problem
from adam_jax.experiments.machine import cores

LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-4


class Stepper(Protocol):
    """Takes steps."""

    compile_seconds: float | None = None  # None where nothing is compiled
    state_bytes: int = 0  # of the optimizer's state, once a step is taken
    peak_bytes: int = 0  # with parameters, gradients, and what a step takes beside them

    def run(self, steps: int) -> None:
        """Take steps, and return when the last is done."""

    def params(self) -> list[np.ndarray]:
        """Copy the parameters, as float32."""
        ...


class Program(NamedTuple):
    """An optimizer as JAX compiles it."""

    init: Callable[[Any], Any]  # params -> state
    step: Callable[[Any, Any, Any], Any]  # params, state, grads -> params, state


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


class JaxStepper(Stepper):
    """A jitted step that donates parameters and state, from zero on."""

    def __init__(self, program: Program, grads: Sequence[jax.Array]):
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
        for _ in range(steps):
            self._params, self._state = self._step(
                self._params, self._state, self._grads
            )
        jax.block_until_ready((self._params, self._state))

    def params(self) -> list[np.ndarray]:
        return [np.array(param, np.float32) for param in self._params]


class BareLoop(Stepper):
    """The package's bare C++ loop, for float32: the limit on this machine."""

    def __init__(self, grads: Sequence[jax.Array]):
        # XLA's memory, as of all others: NumPy asks Linux for larger pages.
        self._params, *moments = (
            jax.block_until_ready([jnp.zeros_like(grad) for grad in grads])
            for _ in range(3)
        )
        self._held = grads, *moments  # the loop knows only where they lie
        size = sum(grad.nbytes for grad in grads)
        self.state_bytes, self.peak_bytes = 2 * size, 4 * size
        self._past = 0
        count = len(grads)
        addresses = (
            (ctypes.c_void_p * count)(*(x.unsafe_buffer_pointer() for x in arrays))
            for arrays in (self._params, grads, *moments)
        )
        self._step = functools.partial(
            _build_bare_loop().AdamJaxBareLoop,
            ctypes.c_int64(count),
            (ctypes.c_int64 * count)(*(grad.size for grad in grads)),
            *addresses,
            *map(ctypes.c_float, (LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY)),
        )

    def run(self, steps: int) -> None:
        self._step(*map(ctypes.c_int64, (self._past, steps, cores())))
        self._past += steps

    def params(self) -> list[np.ndarray]:
        return [np.array(param) for param in self._params]


def find_compiler() -> str | None:
    """Give the C++ compiler that builds the bare loop, if there is one."""
    return shutil.which(os.environ.get("CXX", "c++"))


@functools.cache
def _build_bare_loop() -> ctypes.CDLL:
    """Compile the loop, which no step of the package needs, for this machine."""
    source = pathlib.Path(__file__).with_name("bare_loop.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/bare_loop.so"
        flags = ["-O3", "-std=c++17", "-fPIC", "-shared", "-pthread"]
        flags += ["-fno-math-errno", "-fno-trapping-math", "-o", library]
        subprocess.run([find_compiler() or "c++", *flags, str(source)], check=True)
        return ctypes.CDLL(library)  # stays loaded when the file is gone


class TorchStepper(Stepper):
    """PyTorch's AdamW in its fused form, for float32, on all cores."""

    def __init__(self, grads: Sequence[jax.Array]):
        import torch  # pyright: ignore[reportMissingImports] (no dependency)

        torch.set_num_threads(cores())
        self._params = [torch.zeros(grad.shape, requires_grad=True) for grad in grads]
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = torch.from_dlpack(grad)
        settings = (LEARNING_RATE, (B1, B2), EPS, WEIGHT_DECAY)
        self._optimizer = self._make(self._params, *settings)

    def _make(self, *settings: Any) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        return torch.optim.AdamW(*settings, fused=True)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._optimizer.step()
        if not self.state_bytes:  # the first step makes the state
            kept = [x for own in self._optimizer.state.values() for x in own.values()]
            self.state_bytes = sum(x.nbytes for x in kept if hasattr(x, "nbytes"))
            self.peak_bytes = 2 * sum(x.nbytes for x in self._params) + self.state_bytes

    def params(self) -> list[np.ndarray]:
        return [param.detach().numpy().copy() for param in self._params]


class BitsandbytesStepper(TorchStepper):
    """The 8-bit AdamW of bitsandbytes."""

    def _make(self, *settings: Any) -> Any:
        import bitsandbytes  # pyright: ignore[reportMissingImports] (no dependency)

        return bitsandbytes.optim.AdamW8bit(*settings)
