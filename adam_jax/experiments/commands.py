"""The commands of `adam-jax`, and the command line that chooses one."""

import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from adam_jax.experiments import options
from adam_jax.experiments.arguments import (
    Command,
    installed_version,
    new_parser,
    parse,
    shorten,
)
from adam_jax.experiments.epilogs import TRAIN

COMMANDS: dict[str, Command] = {
    "train": Command("train a model, or go on with a run", options.train, "run"),
    "compare": Command(
        "train with several optimizers", options.compare, "study.compare"
    ),
    "sweep": Command("train over a grid of settings", options.sweep, "study.sweep"),
    "inspect": Command("print the figures of a run", options.inspect, "inspection"),
    "report": Command("make a web page of runs", options.report, "report.command"),
    "bench": Command(
        "time a step beside optax.adamw, or count what it moves",
        options.bench,
        "bench.command",
    ),
    "trace": Command("trace optimizers on a surface", options.trace, "trace.command"),
    "family": Command(
        "print the family tree, or two chains side by side", options.family, "family"
    ),
    "configs": Command("list or print configs", options.configs, "shipped"),
    "convert": Command(
        "print or convert the file of a state", options.convert, "convert"
    ),
}


def prepare(argv: Sequence[str] | None) -> Callable[[], None] | None:
    """Read a command line, and give what it asks for.

    Gives None where no command is named, after printing the help.

    Raises:
      ValueError: if an option, a key, a type or a value is wrong, in one sentence.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = next(iter(argv), None)
    if name not in COMMANDS:
        parser = _build_parser()
        parse(parser, argv)
        parser.print_help()
        return None
    # Only the parser that is asked for: to build them all takes a tenth of a second.
    parser = COMMANDS[name].build_parser()
    parser.prog = f"adam-jax {name}"
    try:
        return COMMANDS[name].prepare(parser, parse(parser, argv[1:]))
    except ValueError as error:  # what it names may be long
        raise ValueError(shorten(str(error))) from error


def _build_parser() -> ArgumentParser:
    """Build the parser of what is no command: it lists them."""
    parser = new_parser(
        "Adam taken apart: train small models with any of its relatives.",
        TRAIN,
        prog="adam-jax",
        version=installed_version(),
    )
    commands = parser.add_subcommands(required=False, dest="command")
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, ArgumentParser(), help=command.about)
    return parser
