"""The options of every command, and their help. To build a parser takes no JAX."""

import textwrap
from typing import Any

from jsonargparse import ArgumentParser

import adam_jax
from adam_jax.experiments.arguments import new_config_parser, new_parser
from adam_jax.experiments.bench.arguments import (
    CHIPS,
    COMPILED,
    COMPILED_SIZES,
    FORMATS,
    REPEATS,
    SIZES,
    TIMED_FORMATS,
)
from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.epilogs import (
    BENCH,
    COMPARE,
    CONFIGS,
    CONVERT,
    FAMILY,
    INSPECT,
    REPORT,
    SWEEP,
    TRACE,
    TRAIN,
)
from adam_jax.experiments.study.config import CompareConfig, SweepConfig
from adam_jax.experiments.trace.config import TraceConfig

SAME = "same"  # what `adam-jax convert` writes unless it is told


def train() -> ArgumentParser:
    """Build the parser of `adam-jax train`."""
    parser = new_config_parser(
        TrainConfig,
        "Train a Flax NNX model on handwritten digits, or on English text.",
        lambda: f"{_list_optimizers()}\n\n{TRAIN}",
    )
    parser.add_argument(
        "--resume",
        type=str,
        metavar="RUN",
        help="Folder of a run that was killed or interrupted, to go on from its last "
        "checkpoint to the end that it would have had. Its config is kept: no other "
        "option goes with this one.",
    )
    return parser


def compare() -> ArgumentParser:
    """Build the parser of `adam-jax compare`."""
    return new_config_parser(
        CompareConfig,
        "Train with several optimizers, each from several seeds at once; end with a "
        "table and a picture of their curves.",
        COMPARE,
    )


def sweep() -> ArgumentParser:
    """Build the parser of `adam-jax sweep`."""
    return new_config_parser(
        SweepConfig,
        "Train under every setting of a grid at once; end with the best one and a "
        "picture of the loss over them all.",
        SWEEP,
    )


def inspect() -> ArgumentParser:
    """Build the parser of `adam-jax inspect`."""
    parser = new_parser(
        "Print what the optimizer did in a run: its figures over the epochs, and by "
        "parameter group after the last one.",
        INSPECT,
    )
    parser.add_argument("run", type=str, help="folder of the run, as in runs/NAME")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON, with null for NaN and infinity",
    )
    return parser


def report() -> ArgumentParser:
    """Build the parser of `adam-jax report`."""
    parser = new_parser(
        "Make a web page of a run, of several runs side by side, or of a study: "
        "interactive curves, diagnostics, config and environment, all in one file.",
        REPORT,
    )
    parser.add_argument(
        "runs", type=str, nargs="+", help="folders of runs, or the one of a study"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="file to write (default: report.html in the folder of the run, or in the "
        "one that all runs are in)",
    )
    return parser


def trace() -> ArgumentParser:
    """Build the parser of `adam-jax trace`."""
    return new_config_parser(
        TraceConfig,
        "Trace the paths of optimizers on a surface: a picture and an animation.",
        lambda: f"{_list_surfaces()}\n\n{_list_optimizers()}\n\n{TRACE}",
    )


def family() -> ArgumentParser:
    """Build the parser of `adam-jax family`."""
    parser = new_parser(
        "Print every optimizer below the one that it changes, or two chains side by "
        "side, with a mark where they differ.",
        FAMILY,
    )
    parser.add_argument(
        "names",
        type=str,
        nargs="*",
        default=[],
        help="one optimizer, to be compared with the one that it changes, or two",
    )
    return parser


def configs() -> ArgumentParser:
    """Build the parser of `adam-jax configs`."""
    parser = new_parser(
        "List the configs that --config takes by name, or print one.", CONFIGS
    )
    parser.add_argument("name", type=str, nargs="?", help="the one to print")
    return parser


def convert() -> ArgumentParser:
    """Build the parser of `adam-jax convert`."""
    parser = new_parser(
        "Print what is in the file of an optimizer state; write it as another file.",
        CONVERT,
    )
    parser.add_argument(
        "old",
        type=str,
        help="file to read: of adam_jax.save_state, of torch.save, of model.save in "
        "Keras, of flax.serialization.to_bytes, or the folder of an Orbax checkpoint",
    )
    parser.add_argument("new", type=str, nargs="?", help="file to write")
    parser.add_argument(
        "--to",
        type=str,
        default=SAME,
        help="what to write: float32, bfloat16 or 8bit, for a file of save_state that "
        f"stores moments so; {SAME}, for one that stores them as they are; torch; "
        "keras; optax or, say, optax.adamw, for a file of flax.serialization",
    )
    parser.add_argument(
        "--like",
        type=str,
        help="for torch and keras: file of the optimizer, or of the model, that is to "
        "go on, as it is before its first step",
    )
    parser.add_argument(
        "--names",
        type=str,
        help="for torch and keras: file with the paths of the parameters, such as "
        "dense/kernel, in the order of the optimizer there, one a line (default for "
        "torch: their names there, if the optimizer was given any)",
    )
    parser.add_argument(
        "--turned",
        type=str,
        help="for torch: pattern of the paths whose axes are (out, in, ...) there and "
        "(..., in, out) here, such as '*kernel'",
    )
    return parser


def bench() -> ArgumentParser:
    """Build the parser of `adam-jax bench`."""
    parser = new_parser(
        "Time a step of AdamW beside optax.adamw, in one process.",
        lambda: f"{_list_candidates()}\n\n{BENCH}",
    )
    several: dict[str, Any] = {"nargs": "+", "type": str, "default": None}
    parser.add_argument(
        "--sizes",
        **several,
        metavar="SIZE",
        help="Parameters (4096, 2^12), a shape (64,2^6), leaves of one size (300x4096, "
        f"12x64,64), or gpt2. By default {' '.join((*SIZES,))}, "
        f"if compiled {' '.join(COMPILED_SIZES)}.",
    )
    parser.add_argument(
        "--formats",
        **several,
        metavar="FORMAT",
        help="Of the moments; in pure ones parameters and gradients are bfloat16: "
        f"{', '.join(FORMATS)}. By default the first {len(TIMED_FORMATS)}, "
        "if compiled all.",
    )
    parser.add_argument(
        "--candidates",
        **several,
        metavar="NAME",
        help="As listed below. By default all, the wrappers (the last ones) at two "
        f"sizes only; if compiled {', '.join(COMPILED)}.",
    )
    parser.add_argument(
        "--compiled",
        type=str,
        default=None,
        metavar="MACHINE",
        help=f"Count bytes, run nothing: compile for {', '.join(CHIPS)}, none of which "
        "need be here. With its chips, as in v5e:4x4, leaves are cut over all of them.",
    )
    parser.add_argument(
        "--base",
        type=str,
        default=None,
        metavar="NAME",
        help="Measure beside this candidate; by default optax, or its like.",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=None,
        metavar="N",
        help=f"Pairs of turns, {REPEATS} by default; slow ones stop after 10 seconds.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Two tiny sizes, two formats and three pairs, to see that it works.",
    )
    parser.add_argument("--json", type=str, metavar="FILE", help="Write figures there.")
    parser.add_argument(
        "--picture", type=str, metavar="FILE", help="Draw there: .png, .svg or .pdf."
    )
    return parser


def _list_optimizers() -> str:
    names = ", ".join(sorted(adam_jax.OPTIMIZERS))
    return "optimizers:\n" + textwrap.indent(textwrap.fill(names, 76), "  ")


def _list_surfaces() -> str:
    from adam_jax.experiments.trace.surfaces import SURFACES

    lines = (
        textwrap.fill(
            f"{name:21}  {surface.about}; {', '.join(surface.settings)}",
            86,
            initial_indent="  ",
            subsequent_indent=" " * 25,
        )
        for name, surface in SURFACES.items()
    )
    return "\n".join(("surfaces, and the optimizers that each shows:", *lines))


def _list_candidates() -> str:
    from adam_jax.experiments.bench.candidates import CANDIDATES

    width = max(map(len, CANDIDATES))
    lines = (f"  {name:{width}}  {one.about}" for name, one in CANDIDATES.items())
    return "\n".join(("candidates:", *lines))
