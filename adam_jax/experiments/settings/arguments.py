"""What commands are told: options and TOML files, which Pydantic checks."""

import argparse
import dataclasses
import inspect
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import tomli_w
from pydantic import TypeAdapter, ValidationError

import adam_jax
from adam_jax.experiments.metrics import no_run
from adam_jax.experiments.settings.config import suggest
from adam_jax.experiments.settings.shipped import list_configs

_LONGEST = 300  # characters of a message
# Words of Pydantic, and those of TOML.
_WORDS = {"an object": "a table", "an array": "a list", "a valid array": "a list"}
_WORDS |= {"Tuple": "List", "Dictionary": "Table", " after validation": ""}
_adapt = lru_cache(TypeAdapter)


class Parser(argparse.ArgumentParser):
    """Raise a ValueError for what is wrong, and keep the lines of the examples."""

    def __init__(self, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> Any:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Put(argparse.Action):
    """Put a value into the namespace's `table`, in the tables that its key names."""

    def __call__(self, parser: Any, namespace: Any, values: Any, *_: Any) -> None:
        value: Any = True if self.nargs == 0 else values
        for key in reversed(self.dest.split(".")):
            value = {key: value}
        namespace.table = merge(getattr(namespace, "table", {}), value)


def list_options(
    config: type, start: str = ""
) -> Iterator[tuple[str, Field, Any, str]]:
    """Give key, field, type and help of each option, and then of those in its table."""
    kinds = get_type_hints(config)  # without what is Annotated
    docs = (docstring_parser.parse(x.__doc__ or "") for x in config.__mro__[::-1])
    about = {x.arg_name: x.description or "" for doc in docs for x in doc.params}
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        yield start + field.name, field, kind, about.get(field.name, "")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from list_options(kind, f"{start}{field.name}.")


def add_options(
    parser: Parser, config: type, takes_files: bool, argv: Sequence[str]
) -> None:
    """Add the options of a command, which are the fields of a dataclass.

    Unless they may come from files, those that are not keyword-only are given without
    a name. Options in tables whose keys are free are found in `argv`.
    """
    if takes_files:
        parser.usage = f"{parser.prog} [--config CONFIG] [options]"
        about = (
            "TOML file with any of the options below, or the name of one of `adam-jax "
            "configs`; the command line overrides it. It may be given several times."
        )
        parser.add_argument("--config", action="append", default=[], help=about)
        about = "Print all options as TOML, and do nothing else."
        parser.add_argument("--print_config", action="store_true", help=about)
    for key, field, kind, about in list_options(config):
        needed, nargs = field.default is MISSING, None
        if get_origin(kind) is Literal:
            about += f" (one of {', '.join(get_args(kind))})"
        if takes_files:
            about += "" if needed else f" (default: {json.dumps(field.default)})"
        elif kind is bool:
            nargs = 0
        elif get_origin(kind) is tuple:
            kind, nargs = str, "+" if needed or field.kw_only else "*"
        elif not (needed or field.kw_only):
            nargs = "?"
        named = takes_files or field.kw_only
        _add(parser, f"--{key}" if named else key, kind, about, nargs=nargs)
        if get_origin(kind) is dict:
            given = {word.split("=")[0] for word in argv}
            for name in (x for x in given if x.startswith(f"--{key}.")):
                _add(parser, name, None, argparse.SUPPRESS)


def _add(parser: Parser, name: str, kind: Any, about: str, **options: Any) -> None:
    kinds = {*get_args(kind)} or {kind}

    def utf8(text: str) -> Any:
        text.encode()  # where this fails, argparse speaks of an "invalid utf8 value"
        if kinds <= {str, Path, NoneType}:
            return None if text == "null" and NoneType in kinds else text
        return read_value(text)

    if name.startswith("--"):
        metavar = name.split(".")[-1].strip("-").upper()
        options |= {"dest": name[2:], "metavar": metavar}
    options |= {"default": argparse.SUPPRESS, "help": about.replace("%", "%%")}
    parser.add_argument(name, action=_Put, type=utf8, **options)


def read_value(text: str) -> Any:
    """Read a value as JSON or TOML; what is neither is text."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, RecursionError):
        [value] = tomllib.loads(f"value = {text}").values()
        return value
    return text


def read_file(name: str) -> dict[str, Any]:
    """Read a TOML file, or one of the configs that have names."""
    try:
        path = name if Path(name).is_file() else list_configs().get(name, name)
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        listed = " (adam-jax configs lists those by name)"
        hint = suggest(list_configs(), name) or listed if name.isidentifier() else ""
        raise ValueError(f"{name}: {error.strerror}{hint}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read_resumed(table: dict[str, Any], command: str) -> dict[str, Any]:
    """Read the config of the folder that a command is to resume; no more is given."""
    for key, value in table.items():
        while isinstance(value, dict) and value:
            name, value = next(iter(value.items()))
            key = f"{key}.{name}"
        if key != "resume":
            raise ValueError(
                f"{key} is set, but --resume goes on with the config of the run: leave "
                f"out --{key}"
            )
    path = Path(table["resume"], "config.toml")
    try:
        path.read_bytes()
    except OSError as error:
        raise no_run(path, error, command) from error
    return read_file(str(path))


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Put two tables together; where both have a value, the new one holds."""
    merged = old | new
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            merged[key] = merge(old[key], new[key])
    return merged


def make_config(config: type, table: dict[str, Any], name: str = "") -> Any:
    """Make a dataclass of a table, whose keys, types and values are checked.

    What is wrong is one sentence, in which keys follow the name of the table.
    """
    text = json.dumps(table, default=str)
    try:
        # In strict JSON, a list may become a tuple, but no text becomes a number.
        return _adapt(config).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_explain(error, table, name, config)) from error


def _explain(error: ValidationError, table: Any, name: str, config: type) -> str:
    """Name the innermost key at which something is wrong, and say what."""
    found = [(_find(table, x["loc"]), x) for x in error.errors(include_url=False)]
    place = max((place for place, _ in found), key=len)
    first, *others = (x for where, x in found if where == place)
    full = [name, *place] if name else place
    key = ".".join(full) or "config"
    match first["type"]:
        case "value_error":
            return ".".join([*full, str(first.get("ctx", {})["error"])])
        case "unexpected_keyword_argument" | "extra_forbidden":
            beside = _list_beside(config, place[:-1])
            known = [*beside, *(x for x, *_ in list_options(config))]
            listed = f": choose from {', '.join(beside)}" if beside else ""
            return f"{key} is no option{suggest(known, place[-1]) or listed}"
        case "missing":
            return f"{key}: {first['loc'][-1]} is missing"
        case "json_invalid" if "recursion" in first["msg"]:
            raise RecursionError from error
        case "json_invalid":
            return first["msg"]
    kinds = dict.fromkeys(x["msg"].removeprefix("Input should be ") for x in others)
    message = " or ".join([first["msg"], *kinds])
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    value, choices = first["input"], first.get("ctx", {}).get("expected", "")
    got = str(value) if isinstance(value, float) else json.dumps(value)
    hint = suggest(choices.split("'")[1::2], str(value))
    return f"{key}: {message}, got {got}{hint}"


def _list_beside(kind: Any, way: Sequence[str]) -> list[str]:
    """List the options of the table to which a way leads, from that of a type."""
    if not dataclasses.is_dataclass(kind):  # but a list of them, or one or else another
        rest = way[1:] if get_origin(kind) is tuple else way
        return [x for part in get_args(kind) for x in _list_beside(part, rest)]
    if way:
        return _list_beside(get_type_hints(kind).get(way[0]), way[1:])
    return [field.name for field in dataclasses.fields(kind)]


def _find(table: Any, way: Sequence[Any]) -> list[str]:
    """Give the keys of the table on a way that names types of unions, too."""
    place = []
    for key in way:
        with suppress(KeyError, IndexError, TypeError):
            table = table[key]
            place.append(str(key))
    return place


def check_call(
    function: Callable[..., Any], table: dict[str, Any], name: str
) -> dict[str, Any]:
    """Check a table against the names and types of a function's keyword arguments.

    Gives the table, with a tuple instead of a list where the function wants one.
    """
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # of a type that is imported only where types are checked
        signature = inspect.signature(function)
    try:
        signature.bind(**table)
    except TypeError as error:
        known = signature.parameters
        takes = f"; what it takes is {', '.join(known) or 'nothing'}"
        hint = suggest(known, *(key for key in table if key not in known)) or takes
        raise ValueError(f"{name}: {error}{hint}") from error
    given = [x for key, x in signature.parameters.items() if key in table]
    typed = [x for x in given if x.annotation not in (x.empty, str(x.annotation))]
    types = {x.name: x.annotation for x in typed}
    settings = {"__pydantic_config__": {"arbitrary_types_allowed": True}}
    checked = dataclasses.make_dataclass("checked", types.items(), namespace=settings)
    return table | vars(make_config(checked, {key: table[key] for key in types}, name))


def to_toml(config: Any) -> str:
    """Write a config as TOML, below a line with the versions; null is left out."""
    head = f"# adam-jax {adam_jax.__version__}, jax {version('jax')}"
    try:
        return f"{head}\n\n{tomli_w.dumps(_drop_nulls(dataclasses.asdict(config)))}"
    except TypeError as error:
        raise ValueError("a list holds null, which TOML cannot store") from error


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nulls(x) for key, x in value.items() if x is not None}
    return [*map(_drop_nulls, value)] if isinstance(value, list | tuple) else value


def shorten(message: str) -> str:
    """Leave out the middle of what is too long, and show what cannot be printed."""
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    if len(message) <= _LONGEST:
        return message
    half = _LONGEST // 2
    return f"{message[:half]} ... {message[-half:]}"
