"""What the parsers of all commands share; jsonargparse reads and type-checks."""

import argparse
import contextlib
import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

import toml
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage] (documented)
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_dumper,
    set_parsing_settings,
)

from adam_jax.experiments.shipped import list_configs

NO_TABLE = (
    "model and optimizer must be tables, as in [optimizer] or optimizer.name; so must "
    "the grid of a sweep"
)

_EXPECTED = r"expected \1, got \2"
_EXPECTED_NAME = r"expected tables with a name, got \1"
_EXPECTED_RANGE = r"expected a list of numbers, or {min, max, count}, got \1"
_MISSING = r"expected {min, max, count}, but \1 is missing"
_LONGEST = 300  # characters of a message


class _Encoder(toml.TomlEncoder):
    """Write strings as JSON does; its parent class breaks those with a backslash."""

    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = partial(json.dumps, ensure_ascii=False)


set_dumper("toml", lambda data: toml.dumps(data, _Encoder()))
# A config is data: no class_path in it imports what it likes.
set_parsing_settings(import_path_allowlist=["adam_jax"], import_path_denylist=["*"])


class Command(NamedTuple):
    """Hold a command of `adam-jax`.

    Attributes:
      about: What it does, in a few words.
      build_parser: Give the parser of its options.
      module: Where its work is. Its function `prepare` turns that parser and what it
        has read into what is to be run. Whatever is wrong with the options is found
        there, before anything is written.
    """

    about: str
    build_parser: Callable[[], ArgumentParser]
    module: str

    def prepare(self, parser: ArgumentParser, options: Namespace) -> Callable[[], None]:
        """Give what is to be run.

        Raises:
          ValueError: if an option is wrong.
        """
        module = import_module(f"adam_jax.experiments.{self.module}")
        return module.prepare(parser, options)


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of the examples."""


class _ConfigFile(ActionConfigFile):
    """Read a TOML file; its parent class would take a missing file for TOML text."""

    def __call__(
        self, parser: Any, cfg: Any, values: str, option_string: str | None = None
    ) -> None:
        try:
            if not Path(values).is_file():
                values = str(list_configs().get(values, values))
            table = tomllib.loads(Path(values).read_text("utf-8"))
            if "config" in table:
                raise ValueError("'config' is no option of a file")
            before = {key: cfg.get(key) for key in table}
            super().__call__(parser, cfg, values, option_string)
            for key, old in before.items():
                if isinstance(old, dict):
                    cfg[key] = _merge(old, cfg[key])
        except OSError as error:
            named = re.fullmatch(r"\w+", values) is not None
            hint = " (adam-jax configs lists those by name)" if named else ""
            message = f"{values}: {error.strerror}{hint}"
            raise argparse.ArgumentError(None, message) from error
        except (ValueError, argparse.ArgumentError) as error:
            raise argparse.ArgumentError(None, f"{values}: {error}") from error


class _ConfigParser(ArgumentParser):
    """Read files first, and keep all that is given of a table whose keys are free.

    Its parent class lets a file override the options that stand before it. Of
    `--settings.adam.b1 0.5 --settings.adam.b2 0.3` it keeps only the last, and nothing
    of such a table in a file. So each is read alone here, and put together.
    """

    free_tables: tuple[str, ...] = ()

    def format_help(self) -> str:
        """Give the help; its end may be a function that makes it."""
        if callable(self.epilog):
            self.epilog = self.epilog()
        return super().format_help()

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Namespace:
        words, files, parts, others = list(args), [], [], []
        while words:
            name, equals, _ = words[0].partition("=")
            table = name.split(".")[0].removeprefix("--")
            found = {"config": files, **dict.fromkeys(self.free_tables, parts)}
            is_known = name.startswith("--") and table in found
            length = 2 if is_known and not equals else 1
            (found[table] if is_known else others).append(words[:length])
            del words[:length]
        given = super().parse_args([*chain(*files, *others)], *rest, **options)
        for part in parts:
            alone = super().parse_args(part, *rest, **options)
            for table in self.free_tables:
                given[table] = _merge(given[table], alone[table])
        return given


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Put two tables together; where both have a value, the new one holds."""
    merged = old | new
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            merged[key] = _merge(old[key], new[key])
    return merged


def new_parser(description: str, epilog: Any, **options: Any) -> _ConfigParser:
    """Start the parser of a command, or of them all."""
    return _ConfigParser(
        description=description,
        epilog=epilog,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        parser_mode="toml",
        **options,
    )


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Read options.

    Raises:
      ValueError: if an option, a key or a type is wrong, in one sentence.
    """
    with _in_one_sentence():
        return parser.parse_args(argv)


def check_table(config: type, name: str, table: dict[str, Any]) -> None:
    """Check the types of a table that has any of a config's fields.

    Raises:
      ValueError: if a key or a type is wrong, in one sentence that names the table.
    """
    # The library takes null for anything here, though it stands for a default of null.
    needed = {x.name for x in dataclasses.fields(config) if x.default is not None}
    for key in needed & {key for key, value in table.items() if value is None}:
        raise ValueError(f"{name}: {key}: expected a value, got null")
    parser = new_parser("", "")
    parser.add_class_arguments(config)
    with _in_one_sentence(f"{name}: "):
        parser.parse_object(table, defaults=False)


@contextlib.contextmanager
def _in_one_sentence(start: str = "") -> Iterator[None]:
    try:
        yield
    except argparse.ArgumentError as error:
        raise ValueError(start + in_one_sentence(str(error))) from error
    except TypeError as error:  # the library's own, at `optimizer = 3`
        raise ValueError(start + NO_TABLE) from error
    except OverflowError as error:
        raise ValueError(f"{start}a number has more than 308 digits") from error
    except RecursionError as error:
        raise ValueError(f"{start}lists or tables are nested too deeply") from error


def new_config_parser(
    config: type, description: str, epilog: Any, **options: Any
) -> ArgumentParser:
    """Start the parser of a command that takes a TOML file of a config's fields."""
    parser = new_parser(
        description,
        epilog,
        dump_header=[f"adam-jax {installed_version()}, jax {version('jax')}"],
        **options,
    )
    parser.add_argument(
        "--config",
        action=_ConfigFile,
        help="TOML file with any of the options below, or the name of one of "
        "`adam-jax configs`; the command line overrides it.",
    )
    parser.add_class_arguments(config)
    parser.free_tables = tuple(
        key for key, hint in get_type_hints(config).items() if get_origin(hint) is dict
    )
    return parser


def read_config(
    config: type[Any], parser: ArgumentParser, options: Namespace
) -> tuple[Any, str]:
    """Turn what such a parser has read into a config, and into the same as TOML.

    Raises:
      ValueError: if the config refuses a value.
    """
    try:
        given = parser.instantiate(options)
        del given["config"]  # where the values came from is not one of them
        return config(**given), parser.dump(options)
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
        (r"(\w+): Unable to load config '(.*?)'.*", r"\1: no such file: '\2'"),
        (r"Subclasses are disabled for .*", NO_TABLE),
        (r"Does not validate .*Range'>.* required: ([\w, ]+?) - .*", _MISSING),
        (r"Does not validate .*\[<class '\S*Range'>.*value: ?(.*)", _EXPECTED_RANGE),
        (r"Does not validate .*Subtypes: \[(.*?), .*?\].*value: ?(.*)", _EXPECTED),
        (r"Not a valid subclass of \w+\. Got value: (.*?) Subclass.*", _EXPECTED_NAME),
        (r"Expected a dot import path string: ?(.*)", _EXPECTED_NAME),
        (r"Import path (.*) does not correspond .*", _EXPECTED_NAME),
        (r"Importing '(.*)' is not allowed.*", _EXPECTED_NAME),
        (r"Problem with given class_path '.*?': ", ""),
        (r"Expected an? (.*?)\. Got value: ?(.*)", _EXPECTED),
        (r"<class '(\w+)'>", r"\1"),
        (r"typing\.Literal\[(.*?)\]", r"one of \1"),
        (r"expected tuple", "expected a list"),
        (r"required: \w+\.", "required: "),
        (r"list\[(\w+)\]", r"a list of \1"),
        (r"\bOption '(.*?)' is not accepted", r"'\1' is no option"),
        (r"Group '(.*?)' does not accept option '(.*?)'", r"'\1.\2' is no option"),
        (r", got $", ", got ''"),
    ):
        message = re.sub(pattern, words, message)
    return f"{shorten(message)} (see adam-jax --help)"


def shorten(message: str) -> str:
    """Leave out the middle of what is too long, and show what cannot be printed."""
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    if len(message) <= _LONGEST:
        return message
    half = _LONGEST // 2
    return f"{message[:half]} ... {message[-half:]}"
