"""The options of `adam-jax bench` on the command line."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from adam_jax.experiments.arguments import new_parser
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS, TIMED_FORMATS
from adam_jax.experiments.bench.compiled import CHIPS
from adam_jax.experiments.bench.plan import (
    COMPILED,
    COMPILED_SIZES,
    REPEATS,
    SIZES,
    BenchConfig,
)

EXAMPLES = """\
examples:
  adam-jax bench --quick
  adam-jax bench --json bench.json --picture bench.png
  adam-jax bench --sizes 2^24 150x2^17 gpt2 --candidates adamw fused_step
  adam-jax bench --sizes 2^24 --candidates fused_step --base torch
  adam-jax bench --compiled v5e --formats float32 8bit
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command."""
    width = max(map(len, CANDIDATES))
    about = "\n".join(f"  {k:{width}}  {v.about}" for k, v in CANDIDATES.items())
    parser = new_parser(
        "Time a step of AdamW beside optax.adamw, in one process.",
        f"candidates:\n{about}\n\n{EXAMPLES}",
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


def read_config(options: Namespace) -> BenchConfig:
    """Turn what the parser returned into a config."""
    values = {k: v for k, v in vars(options).items() if k != "config"}
    for name in ("json", "picture"):
        values[name] = values[name] and Path(values[name])
    return BenchConfig(**values)
