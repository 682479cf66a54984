"""The grammar of the command line, read and type-checked by jsonargparse."""

import argparse
import re
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage] (documented)
    ArgumentParser,
    DefaultHelpFormatter,
)

from adam_jax import OPTIMIZERS
from adam_jax.experiments.bench.arguments import build_parser as build_bench_parser
from adam_jax.experiments.bench.arguments import read_config as read_bench_config
from adam_jax.experiments.bench.plan import BenchConfig
from adam_jax.experiments.config import TrainConfig

EXAMPLES = """\
examples:
  adam-jax train --config configs/digits_mlp.toml
  adam-jax train --config configs/digits_mlp.toml --optimizer.learning_rate 3e-4
  adam-jax train --model.name cnn --model.widths "[32, 64]" --optimizer.name lion
  adam-jax inspect runs/digits_mlp
"""
INSPECT_EXAMPLES = """\
examples:
  adam-jax inspect runs/digits_mlp
  adam-jax inspect runs/digits_mlp --json | jq '.epochs[-1].figures.update_ratio'

docs/diagnostics.md tells how to read the figures.
"""
NAMES = textwrap.fill(
    ", ".join(sorted(OPTIMIZERS)), 78, initial_indent="  ", subsequent_indent="  "
)

NO_TABLE = "model and optimizer must be tables, as in [optimizer] or optimizer.name"

_EXPECTED = r"expected \1, got \2"


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of the examples."""


class _ConfigFile(ActionConfigFile):
    """Read a TOML file; its parent class would take a missing file for TOML text."""

    def __call__(
        self, parser: Any, cfg: Any, values: str, option_string: str | None = None
    ) -> None:
        try:
            Path(values).read_text("utf-8")
            super().__call__(parser, cfg, values, option_string)
        except OSError as error:
            raise argparse.ArgumentError(None, f"{values}: {error.strerror}") from error
        except (UnicodeDecodeError, argparse.ArgumentError) as error:
            raise argparse.ArgumentError(None, f"{values}: {error}") from error


class Train(NamedTuple):
    """Say what to train: a config, and the same as TOML."""

    config: TrainConfig
    resolved: str


class Inspect(NamedTuple):
    """Say which run to inspect, and whether to print JSON."""

    run: Path
    as_json: bool


def build_parsers() -> tuple[ArgumentParser, ArgumentParser]:
    """Build the parser of `adam-jax`, and that of its command `train`."""
    parser = ArgumentParser(
        prog="adam-jax",
        description="Adam taken apart: train a small model with any of its relatives.",
        epilog=EXAMPLES,
        version=_installed_version(),
        parser_mode="toml",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    train = ArgumentParser(
        description="Train a Flax NNX model on handwritten digits, or on English text.",
        epilog=f"optimizers:\n{NAMES}\n\n{EXAMPLES}",
        parser_mode="toml",
        formatter_class=_HelpFormatter,
        dump_header=[f"adam-jax {_installed_version()}, jax {jax.__version__}"],
        exit_on_error=False,
    )
    train.add_argument(
        "--config",
        action=_ConfigFile,
        help="TOML file with any of the options below; the command line overrides it.",
    )
    train.add_class_arguments(TrainConfig)
    inspect = ArgumentParser(
        description="Print what the optimizer did in a run: its figures over the "
        "epochs, and by parameter group after the last one.",
        epilog=INSPECT_EXAMPLES,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    inspect.add_argument("run", type=str, help="folder of the run, as in runs/NAME")
    inspect.add_argument(
        "--json",
        action="store_true",
        help="print JSON, with null for NaN and infinity",
    )
    commands = parser.add_subcommands(required=False, dest="command")
    commands.add_subcommand("train", train, help="train a model")
    commands.add_subcommand("inspect", inspect, help="print the figures of a run")
    bench = build_bench_parser(_HelpFormatter)
    commands.add_subcommand("bench", bench, help="time a step beside optax.adamw")
    return parser, train


def _installed_version() -> str:
    try:
        return version("adam_jax")
    except PackageNotFoundError:  # a checkout that was put on the path by hand
        return "(not installed)"


def parse_arguments(
    argv: Sequence[str] | None,
) -> Train | Inspect | BenchConfig | None:
    """Read a command line.

    Gives None where no command is named, after printing the help.

    Raises:
      ValueError: if an option, a key, a type or a value is wrong, in one sentence.
    """
    parser, train = build_parsers()
    try:
        namespace = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(in_one_sentence(str(error))) from error
    except TypeError as error:  # the library's own, at `optimizer = 3`
        raise ValueError(NO_TABLE) from error
    if namespace.command is None:
        parser.print_help()
        return None
    if namespace.command == "inspect":
        return Inspect(Path(namespace.inspect.run), namespace.inspect.json)
    if namespace.command == "bench":
        return read_bench_config(namespace.bench)
    resolved = train.dump(namespace.train)
    del namespace.train.config  # where the values came from is not one of them
    try:
        return Train(TrainConfig(**train.instantiate(namespace.train)), resolved)
    except TypeError as error:
        raise ValueError(NO_TABLE) from error


def in_one_sentence(message: str) -> str:
    """Put what jsonargparse says into one line, in words of TOML, not of Python."""
    message = " ".join(message.split())
    for pattern, words in (
        (r"Parser key \"(.+?)\":", r"\1:"),
        (r"^(\w+): Unable to load config '(.*?)'.*", r"\1: no such file: '\2'"),
        (r"Does not validate .*Subtypes: \[(.*?), .*?\].*value: (.*)", _EXPECTED),
        (r"Expected an? (.*?)\. Got value: (.*)", _EXPECTED),
        (r"<class '(\w+)'>", r"\1"),
        (r"typing\.Literal\[(.*?)\]", r"one of \1"),
        (r"expected tuple", "expected a list"),
        (r"required: inspect\.", "required: "),
        (r"^Subcommand '(\w+)' does not accept option '(.*?)'", r"'\2' is no option"),
    ):
        message = re.sub(pattern, words, message)
    return f"{message} (see adam-jax --help)"
