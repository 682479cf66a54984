"""Who is measured: names, formats, and how each makes its stepper."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adam_jax
from adam_jax import fused
from adam_jax.experiments.bench.steppers import (
    LEARNING_RATE,
    BareLoop,
    BitsandbytesStepper,
    JaxStepper,
    Program,
    Stepper,
    TorchStepper,
    find_compiler,
)

# Without it, pip would fetch gigabytes for GPUs.
TORCH_FOR_CPU = " --index-url https://download.pytorch.org/whl/cpu"


class Format(NamedTuple):
    """How the moments are stored, and the dtype of parameters and gradients."""

    mu: Any
    nu: Any
    dtype: Any


FORMATS = {
    "float32": Format("float32", "float32", "float32"),
    "bfloat16": Format("bfloat16", "bfloat16", "float32"),
    "8bit": Format("8bit", "8bit", "float32"),
    "pure_bfloat16": Format("bfloat16", "bfloat16", "bfloat16"),
    "pure_8bit": Format("8bit", "8bit", "bfloat16"),
    "mu_bfloat16": Format("bfloat16", "float32", "float32"),
    "pure_float32": Format("float32", "float32", "bfloat16"),
}
# The others only if asked for: their times lie between those of these.
TIMED_FORMATS = ("float32", "bfloat16", "8bit", "pure_bfloat16", "pure_8bit")


class Candidate(NamedTuple):
    """One that is measured: an optimizer for JAX, or what has a stepper of its own."""

    about: str  # a few words for the help
    make_tx: Callable[[Format], Any] | None = None
    formats: Sequence[str] = tuple(FORMATS)
    base: str = "optax"  # the candidate that it is measured beside, in float32
    fuse: bool = False  # take the fused step; timed only where there is a kernel for it
    grads_inside: bool = False  # make gradients in the step, of a loss
    cycle: int = 1  # steps are taken in multiples of so many
    stepper: Callable[[Sequence[jax.Array]], Stepper] | None = None
    why_missing: Callable[[], str | None] = lambda: None

    def program(self, format: Format) -> Program:
        """Return update and apply_updates, or the fused step, of the optimizer."""
        assert self.make_tx is not None  # or it would have a stepper
        tx = self.make_tx(format)

        def update_and_apply(params, grads, state):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        take = fused.step(tx) if self.fuse else update_and_apply

        def step(params, state, grads):
            if self.grads_inside:
                grads = jax.grad(_loss)(params, grads)
            return take(params, grads, state)

        return Program(tx.init, step)

    def make(self, format: Format, grads: Sequence[jax.Array]) -> Stepper:
        """Return what takes steps on gradients of the format's dtype."""
        if self.stepper is not None:
            return self.stepper(grads)
        return JaxStepper(self.program(format), grads)


def _loss(params, targets):
    """Return half the squared distance to a target, for gradients inside of the step.

    The hardest case for a native call: XLA can fuse these gradients into its own loops.
    """
    pairs = zip(params, targets, strict=True)
    return sum(0.5 * jnp.sum((param - target) ** 2) for param, target in pairs)


def _optax(format: Format) -> Any:
    return optax.adamw(LEARNING_RATE)


def _ours(format: Format, wrap: Any = lambda tx: tx) -> Any:
    """Return an adamw of the package's, with both moments in the format."""
    tx = wrap(adam_jax.adamw(LEARNING_RATE, mu_dtype=format.mu, nu_dtype=format.nu))
    return adam_jax.round_to_params(tx) if format.dtype == "bfloat16" else tx


_packed = partial(_ours, wrap=adam_jax.packed)


def _clipped(make_tx: Callable[[Format], Any], format: Format) -> Any:
    return optax.chain(optax.clip_by_global_norm(1.0), make_tx(format))


def _compensated(format: Format) -> Any:
    tx = adam_jax.adamw(LEARNING_RATE, mu_dtype=format.mu, nu_dtype=format.nu)
    return adam_jax.compensate_params(tx)


def _record(format: Format, figures: list[str] | None, every: int) -> Any:
    tx = _ours(format)
    return adam_jax.record(tx, figures, learning_rate=LEARNING_RATE, every=every)


def _rollfast(format: Format) -> Any:
    from rollfast import adamw8  # pyright: ignore[reportMissingImports]

    return adamw8(LEARNING_RATE)


def _why_not_compiled() -> str | None:
    return None if find_compiler() else "there is no C++ compiler to build it with"


def _why_not_installed(package: str, options: str = "") -> str | None:
    found = importlib.util.find_spec(package)
    return None if found else f"to measure it, run pip install {package}{options}"


def _why_no_rollfast() -> str | None:
    try:
        _rollfast(FORMATS["8bit"])
    except ImportError:  # older ones have no adamw8
        return "to measure it, run pip install 'rollfast>=1.0' (Python 3.12 or newer)"
    return None


CANDIDATES = {
    "optax": Candidate(
        "optax.adamw, update and apply_updates: the base of most others",
        _optax,
        formats=("float32", "pure_bfloat16"),
    ),
    "bare_loop": Candidate(
        "AdamW as a bare C++ loop: the limit on this machine",
        stepper=BareLoop,
        formats=("float32",),
        why_missing=_why_not_compiled,
    ),
    "fused_step": Candidate("fused.step(adamw), in place", _ours, fuse=True),
    "fused_clipped": Candidate(
        "fused_step behind optax.clip_by_global_norm",
        partial(_clipped, _ours),
        fuse=True,
        base="clipped",
    ),
    "fused_packed": Candidate(
        "fused.step(packed(adamw)): small leaves share their moments' buffers",
        _packed,
        fuse=True,
    ),
    "clipped": Candidate(
        "optax.adamw behind optax.clip_by_global_norm; the base of fused_clipped",
        partial(_clipped, _optax),
        formats=("float32",),
    ),
    "adamw": Candidate("adam_jax.adamw", _ours),
    "packed": Candidate("packed(adam_jax.adamw)", _packed),
    "torch": Candidate(
        "torch.optim.AdamW(fused=True), where it is installed",
        stepper=TorchStepper,
        formats=("float32",),
        why_missing=partial(_why_not_installed, "torch", TORCH_FOR_CPU),
    ),
    "bitsandbytes": Candidate(
        "bitsandbytes.optim.AdamW8bit, where it is installed",
        stepper=BitsandbytesStepper,
        formats=("8bit",),
        why_missing=partial(_why_not_installed, "bitsandbytes"),
    ),
    "rollfast": Candidate(
        "rollfast.adamw8, where it is installed",
        _rollfast,
        formats=("8bit",),
        why_missing=_why_no_rollfast,
    ),
    "optax_grads": Candidate(
        "optax, with gradients made inside the jitted step; the base of the next",
        _optax,
        grads_inside=True,
        formats=("float32",),
        base="optax_grads",
    ),
    "fused_step_grads": Candidate(
        "fused_step, with gradients made inside",
        _ours,
        fuse=True,
        grads_inside=True,
        formats=("float32", "bfloat16", "8bit"),
        base="optax_grads",
    ),
}

# Timed at two sizes only, if all are: they compile long, or take many steps at a time.
WRAPPERS = {
    "compensated": Candidate(
        "compensate_params(adamw): bfloat16 parameters and what they leave out",
        _compensated,
        formats=("pure_float32", "pure_bfloat16", "pure_8bit"),
    ),
    "skip_nonfinite": Candidate(
        "skip_nonfinite(adamw)",
        partial(_ours, wrap=adam_jax.skip_nonfinite),
        formats=("float32",),
    ),
    "skip_spikes": Candidate(
        "skip_spikes(adamw)",
        partial(_ours, wrap=adam_jax.skip_spikes),
        formats=("float32",),
    ),
}
_FIGURE_SETS = {
    "all": ("all figures", list(adam_jax.FIGURES)),
    "default": ("the figures that are its default", None),
    "one": ("one figure", ["update_norm"]),
}
_INTERVALS = {1: ("", ""), 100: ("_every_100", ", every 100 steps")}
WRAPPERS |= {
    f"record_{name}{suffix}": Candidate(
        f"record(adamw) of {about}{often}",
        partial(_record, figures=figures, every=every),
        formats=("float32",),
        base="adamw",
        cycle=every,
    )
    for name, (about, figures) in _FIGURE_SETS.items()
    for every, (suffix, often) in _INTERVALS.items()
}
WRAPPERS["fused_record"] = Candidate(
    "fused_step of record_default, figures of every step; beside fused_step",
    partial(_record, figures=None, every=1),
    fuse=True,
    formats=("float32", "bfloat16", "8bit", "pure_bfloat16", "pure_8bit"),
    base="fused_step",
)
CANDIDATES |= WRAPPERS
