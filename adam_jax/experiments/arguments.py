"""What the parsers of all commands share; jsonargparse reads and type-checks."""

import argparse
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage] (documented)
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

NO_TABLE = (
    "model and optimizer must be tables, as in [optimizer] or optimizer.name; so must "
    "the grid of a sweep"
)

_EXPECTED = r"expected \1, got \2"
_EXPECTED_NAME = r"expected tables with a name, got \1"
_EXPECTED_RANGE = r"expected a list of numbers, or {min, max, count}, got \1"


class Command(NamedTuple):
    """Hold a command of `adam-jax`.

    Attributes:
      about: What it does, in a few words.
      build_parser: Give the parser of its options.
      prepare: Turn that parser and what it has read into what is to be run. Whatever
        is wrong with the options is found here, before anything is written.
    """

    about: str
    build_parser: Callable[[], ArgumentParser]
    prepare: Callable[[ArgumentParser, Namespace], Callable[[], None]]


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


def new_parser(description: str, epilog: str, **options: Any) -> ArgumentParser:
    """Start the parser of a command, or of them all."""
    return ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        **options,
    )


def new_config_parser(
    config: type, description: str, epilog: str, **options: Any
) -> ArgumentParser:
    """Start the parser of a command that takes a TOML file of a config's fields."""
    parser = new_parser(
        description,
        epilog,
        parser_mode="toml",
        dump_header=[f"adam-jax {installed_version()}, jax {jax.__version__}"],
        **options,
    )
    parser.add_argument(
        "--config",
        action=_ConfigFile,
        help="TOML file with any of the options below; the command line overrides it.",
    )
    parser.add_class_arguments(config)
    return parser


def read_config(
    config: type[Any], parser: ArgumentParser, options: Namespace
) -> tuple[Any, str]:
    """Turn what such a parser has read into a config, and into the same as TOML.

    Raises:
      ValueError: if the config refuses a value.
    """
    resolved = parser.dump(options)
    del options["config"]  # where the values came from is not one of them
    try:
        return config(**parser.instantiate(options)), resolved
    except TypeError as error:
        raise ValueError(NO_TABLE) from error


def installed_version() -> str:
    """Give the version of the package."""
    try:
        return version("adam_jax")
    except PackageNotFoundError:  # a checkout that was put on the path by hand
        return "(not installed)"


def in_one_sentence(message: str) -> str:
    """Put what jsonargparse says into one line, in words of TOML, not of Python."""
    message = " ".join(message.split())
    for pattern, words in (
        (r"Parser key \"(.+?)\":", r"\1:"),
        (r"^(\w+): Unable to load config '(.*?)'.*", r"\1: no such file: '\2'"),
        (r"Does not validate .*\[<class '\S*Range'>.*value: (.*)", _EXPECTED_RANGE),
        (r"Does not validate .*Subtypes: \[(.*?), .*?\].*value: (.*)", _EXPECTED),
        (r"Not a valid subclass of \w+\. Got value: (.*?) Subclass.*", _EXPECTED_NAME),
        (r"Problem with given class_path '.*?': ", ""),
        (r"Expected an? (.*?)\. Got value: (.*)", _EXPECTED),
        (r"<class '(\w+)'>", r"\1"),
        (r"typing\.Literal\[(.*?)\]", r"one of \1"),
        (r"expected tuple", "expected a list"),
        (r"required: \w+\.", "required: "),
        (r"^Option '(.*?)' is not accepted", r"'\1' is no option"),
        (r"^Subcommand '(\w+)' does not accept option '(.*?)'", r"'\2' is no option"),
    ):
        message = re.sub(pattern, words, message)
    return f"{message} (see adam-jax --help)"
