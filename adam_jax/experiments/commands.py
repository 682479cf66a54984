"""The commands of `adam-jax`, and the command line that chooses one."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import docstring_parser

import adam_jax
from adam_jax.experiments.settings import arguments, options
from adam_jax.experiments.settings.config import require_known, suggest
from adam_jax.experiments.study.study_config import CompareConfig, SweepConfig
from adam_jax.experiments.trace.trace_config import TraceConfig


def list_optimizers() -> str:
    """List the optimizers."""
    table = next(x for x in _read("family/table.py") if isinstance(x, ast.Dict))
    names = ", ".join(sorted(map(ast.literal_eval, cast(Any, table.keys))))
    return f"optimizers:\n{textwrap.indent(textwrap.fill(names, 76), '  ')}\n\n"


def list_problems() -> str:
    """List what --arguments may set of the problems that come along."""
    lists = []
    for node in _read("experiments/problems/built_in.py"):
        if isinstance(node, ast.FunctionDef) and node.args.kwonlyargs:
            takes = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            defaults = {x.arg: ast.unparse(cast(Any, value)) for x, value in takes}
            doc = docstring_parser.parse(ast.get_docstring(node) or "")
            rows = {
                x.arg_name: f"{x.description} (default: {defaults[x.arg_name]})"
                for x in doc.params
                if x.arg_name in defaults
            }
            head = (doc.short_description or "").removeprefix("Make ")
            lists.append(_list_rows(f"arguments of {head.removesuffix('.')}", rows))
    return "".join(lists)


def _read(module: str) -> Iterator[ast.AST]:
    """Read a module of the package as text: to import it takes JAX."""
    path = Path(adam_jax.__file__).parent / module
    return ast.walk(ast.parse(path.read_text("utf-8")))


def list_all() -> str:
    """List what a run may be of: problems and optimizers."""
    return list_problems() + list_optimizers()


def list_surfaces() -> str:
    """List the surfaces, and all optimizers."""
    from adam_jax.experiments.trace.surfaces import SURFACES

    rows = {key: f"{x.about}; {', '.join(x.settings)}" for key, x in SURFACES.items()}
    head = "surfaces, and the optimizers that each shows"
    return _list_rows(head, rows) + list_optimizers()


def list_candidates() -> str:
    """List the candidates of the benchmark."""
    from adam_jax.experiments.bench.candidates import CANDIDATES

    return _list_rows("candidates", {key: x.about for key, x in CANDIDATES.items()})


def _list_rows(head: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    indents: Any = {"initial_indent": "  ", "subsequent_indent": " " * (width + 4)}
    lines = (
        textwrap.fill(f"{name:{width}}  {about}", 88, **indents)
        for name, about in rows.items()
    )
    return "\n".join((f"{head}:", *lines, "", ""))


class Command(NamedTuple):
    """Hold a command of `adam-jax`.

    The function `prepare` of its module turns options into what is to be run, and finds
    whatever is wrong before anything is written.
    """

    module: str
    options: type  # the dataclass of its options; its docstring is the help
    takes_files: bool = False  # whether options may come from a TOML file
    listed: Callable[[], str] = str  # gives what its help lists above the examples


COMMANDS = {
    "train": Command("running.run", options.TrainOptions, True, list_all),
    "compare": Command("study.study", CompareConfig, True, list_all),
    "sweep": Command("study.study", SweepConfig, True, list_all),
    "inspect": Command("running.inspection", options.InspectOptions),
    "report": Command("report.reporting", options.ReportOptions),
    "bench": Command("bench.benchmark", options.BenchOptions, False, list_candidates),
    "trace": Command("trace.tracing", TraceConfig, True, list_surfaces),
    "family": Command("family", options.FamilyOptions),
    "new": Command("problems.new", options.NewOptions),
    "configs": Command("settings.shipped", options.ConfigsOptions),
    "convert": Command("convert", options.ConvertOptions),
}


def prepare(argv: Sequence[str] | None) -> Callable[[], None] | None:
    """Read a command line, and give what it asks for; what is wrong is a ValueError.

    Gives None where no command is named, after printing the help.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        told = read_options(argv)
        if told is None:
            return None
        if "--print_config" in argv:
            text = arguments.to_toml(told)
            return lambda: print(text, end="")
        module = f"adam_jax.experiments.{COMMANDS[argv[0]].module}"
        return import_module(module).prepare(told)
    except ValueError as error:  # what it names may be long
        raise ValueError(arguments.shorten(str(error))) from error
    except OverflowError as error:
        raise ValueError("a number has more than 308 digits") from error
    except RecursionError as error:
        raise ValueError("lists or tables are nested too deeply") from error


def read_options(argv: Sequence[str]) -> Any:
    """Read the options of the command that a command line names, as its dataclass."""
    parser = _build_parser(argv)
    if next(iter(argv), None) not in COMMANDS:
        if argv and not argv[0].startswith("-"):
            require_known("the command", argv[0], COMMANDS)
        parser.parse_args(argv)
        return parser.print_help()
    read, unknown = parser.parse_known_args(argv)
    config = COMMANDS[argv[0]].options
    if unknown:
        known = [f"--{key}" for key, *_ in arguments.list_options(config)]
        hint = suggest(known, *(x.partition("=")[0] for x in unknown if x[:1] == "-"))
        hint += f" (see adam-jax {argv[0]} --help)"
        raise ValueError(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    files = {name: arguments.read_file(name) for name in getattr(read, "config", ())}
    table = reduce(arguments.merge, [*files.values(), getattr(read, "table", {})], {})
    if isinstance(folder := table.get("resume"), str):
        files = {folder: arguments.read_resumed(table, f"adam-jax {argv[0]}")}
        table = files[folder] | table
    try:
        return arguments.make_config(config, table)
    except ValueError as error:
        for name, table in files.items():
            takers = " or ".join(x for x in COMMANDS if not find_refusal(x, table))
            if takers and find_refusal(argv[0], table) == str(error):
                why = "" if name == folder else f": {error}"
                words = f"is for adam-jax {takers}, not for adam-jax {argv[0]}{why}"
                raise ValueError(f"{name} {words}") from error
        raise


def find_refusal(name: str, table: dict[str, Any]) -> str:
    """Say why a command does not take a config; "" if it does."""
    try:
        arguments.make_config(COMMANDS[name].options, table)
    except ValueError as error:
        return str(error)
    return "" if COMMANDS[name].takes_files else "it takes none"


def _build_parser(argv: Sequence[str]) -> arguments.Parser:
    """Build the parser of all commands; only the one that is named has its options."""
    about = "Adam taken apart: train small models with any of its relatives."
    examples = _show_examples(options.TrainOptions)
    parser = arguments.Parser(prog="adam-jax", description=about, epilog=examples)
    version = f"%(prog)s {adam_jax.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        about = docstring_parser.parse(command.options.__doc__ or "").short_description
        one = commands.add_parser(name, help=about, description=about)
        if name == next(iter(argv), None):
            arguments.add_options(one, command.options, command.takes_files, argv)
            if "-h" in argv or "--help" in argv:  # what it lists takes time
                one.epilog = command.listed() + _show_examples(command.options)
    return parser


def _show_examples(options: type) -> str:
    _, _, examples = (inspect.getdoc(options) or "").partition("Examples:\n")
    return f"examples:\n{examples}"
