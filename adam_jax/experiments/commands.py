"""The commands of `adam-jax`, and the command line that chooses one."""

import argparse
from collections.abc import Callable, Sequence

from adam_jax.experiments import inspection, run
from adam_jax.experiments.arguments import (
    NO_TABLE,
    Command,
    in_one_sentence,
    installed_version,
    new_parser,
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
}


def prepare(argv: Sequence[str] | None) -> Callable[[], None] | None:
    """Read a command line, and give what it asks for.

    Gives None where no command is named, after printing the help.

    Raises:
      ValueError: if an option, a key, a type or a value is wrong, in one sentence.
    """
    parser = new_parser(
        "Adam taken apart: train small models with any of its relatives.",
        run.EXAMPLES,
        prog="adam-jax",
        version=installed_version(),
        parser_mode="toml",  # of the commands, too
    )
    commands = parser.add_subcommands(required=False, dest="command")
    parsers = {name: command.build_parser() for name, command in COMMANDS.items()}
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, parsers[name], help=command.about)
    try:
        options = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(in_one_sentence(str(error))) from error
    except TypeError as error:  # the library's own, at `optimizer = 3`
        raise ValueError(NO_TABLE) from error
    name = options.command
    if name is None:
        parser.print_help()
        return None
    return COMMANDS[name].prepare(parsers[name], options[name])
