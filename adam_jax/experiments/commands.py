"""The commands of `adam-jax`, and the command line that chooses one."""

import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from adam_jax.experiments import convert, inspection, run
from adam_jax.experiments.arguments import (
    Command,
    installed_version,
    new_parser,
    parse,
    shorten,
)
from adam_jax.experiments.bench import command as bench
from adam_jax.experiments.report import command as report
from adam_jax.experiments.study import compare, sweep
from adam_jax.experiments.trace import command as trace

# Each has its parser where its work is.
COMMANDS: dict[str, Command] = {
    "train": run.COMMAND,
    "compare": compare.COMMAND,
    "sweep": sweep.COMMAND,
    "inspect": inspection.COMMAND,
    "report": report.COMMAND,
    "bench": bench.COMMAND,
    "trace": trace.COMMAND,
    "convert": convert.COMMAND,
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
        run.EXAMPLES,
        prog="adam-jax",
        version=installed_version(),
    )
    commands = parser.add_subcommands(required=False, dest="command")
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, ArgumentParser(), help=command.about)
    return parser
