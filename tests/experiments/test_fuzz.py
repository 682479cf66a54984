"""A thousand broken configs and command lines: each is refused in one sentence."""

import copy
import dataclasses
import datetime
import functools
import json
import math
import operator
import random
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from adam_jax.experiments import commands
from adam_jax.experiments.problems import built_in
from adam_jax.experiments.problems.batches import Rows
from adam_jax.experiments.problems.data import Examples
from adam_jax.experiments.problems.tasks import Task
from adam_jax.experiments.running import run
from adam_jax.experiments.running.optimization import build_optimizer, build_schedule
from adam_jax.experiments.settings.arguments import check_call
from adam_jax.experiments.settings.config import BUILT_IN, OptimizerConfig, TrainConfig
from adam_jax.experiments.study import study
from adam_jax.experiments.study.population import Population
from adam_jax.experiments.study.study_config import (
    CompareConfig,
    GridConfig,
    SweepConfig,
)
from adam_jax.experiments.trace import paths
from adam_jax.experiments.trace.trace_config import TraceConfig

TRIALS = 250  # of each command
LONGEST = 400  # characters of a sentence
CONFIGS = {
    "train": TrainConfig,
    "compare": CompareConfig,
    "sweep": SweepConfig,
    "trace": TraceConfig,
}
FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
SHIPPED = {
    command: [text for text in (file.read_text() for file in FILES) if line in text]
    for command in CONFIGS
    for line in [f"adam-jax {command} --config"]
}
ODD = (
    *(0, -1, 1, 2, 7, 2**31, 2**32, 2**63, 10**9, 10**12, -(10**12), 10**400),
    *(0.0, -0.0, -0.5, 0.5, 1e-3, 0.999, 1e37, 1e308, 5e-324, math.inf, -math.inf),
    *(math.nan, True, False, "", " ", "x", "adam", "sgd", "mlp", "cnn", "vae"),
    *("null", "None", "nan", "8bit", "bfloat16", "int8", "f4,f4", "float128", "\0"),
    *("a\nb", "é漢字😀", "a" * 5000, "../x", "$\\bad$", "[/red]", "{", "'", '"', "-"),
    *("2GB", "1e9GB", "9" * 400, "os.system", "cosine", "mp4", "spikes", "words", "="),
    *([], [[]], [[[1]]], [1, 2], [1, 1], [1.5], ["x"], [math.nan], [10**9], [1, "x"]),
    *([10**9, 10**9], [1] * 300, [-1, 0], [None], [True], {}, {"name": "adam"}),
    *({"x": 1}, {"min": 1}, {"min": 1e-5, "max": 1}, {"max": 1}, {"min": 0, "max": 1}),
    *({"min": 1e-5, "max": 1, "count": 10**9}, {"min": math.nan, "max": 1}),
    *({"min": 1e-5, "max": 1, "scale": "x"}, {"min": "x", "max": 1}, {"a": {"b": {}}}),
    *({"class_path": "os.system"}, {"class_path": "adam", "init_args": {}}),
    *({"init_args": 3}, {"class_path": 3}, {"adam": {"lr": 1}}, {"adam": 3}),
    *({"mine": {"name": "adam"}}, {"adam": {"b1": "x"}}, {"adam": {"name": "x"}}),
    *([{}], [{"name": "adam"}], [{"name": "adam"}, {"name": "adam"}], [{"name": 3}]),
    *([{"name": "sgd", "label": "$"}], [{"lr": 1}], [{"name": "adam", "b1": 2}], [3]),
    datetime.date(2026, 1, 1),
)
NO_VALUES = ("[", "{", "1e999", "0x10", "1_0", "\udcff")
JUNK = (
    b"=",
    b"[",
    b"]",
    b'"',
    b"'",
    b"#",
    b"\n",
    b"\0",
    b".",
    b",",
    b"{",
    b"\xff",
    b"e",
)
ARGUMENTS = ("model", "widths", "latent", "dropout", "hidden_bias", "param_dtype", "x")
NO_TOML = (b"", b"\xef\xbb\xbf", b"\xff\xfe\0", b"[" * 9999, b"a=" + b"[" * 9999)


def list_paths(table, before=()):
    """Give the path of everything in a table, be it in tables or lists of it."""
    rows = table.items() if isinstance(table, dict) else enumerate(table)
    for key, value in rows:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from list_paths(value, (*before, key))


def list_options(config, before=()):
    """Give the path of every option of a config, and of some that are none."""
    tables = {"optimizer": OptimizerConfig, "grid": GridConfig}
    for field in dataclasses.fields(config):
        yield (*before, field.name)
        if field.name == "arguments" and not before:
            yield from ((field.name, key) for key in ARGUMENTS)
        if field.name in tables:
            yield from list_options(tables[field.name], (*before, field.name))
    if config is TraceConfig:
        yield from list_options(OptimizerConfig, ("settings", "adam"))
    yield (*before, "lr")


def follow(table, path):
    """Give what is at a path."""
    return functools.reduce(operator.getitem, path, table)


def add(table, path, value):
    """Set what is at a path; tables on the way are made, unless a list is there."""
    *way, last = path
    for key in way:
        if not isinstance(table, dict):
            return
        if not isinstance(table.get(key), dict | list):
            table[key] = {}
        table = table[key]
    if isinstance(table, dict):
        table[last] = value


def mutate(rng, table, options):
    """Change, rename, drop or add something."""
    found, value = list(list_paths(table)), copy.deepcopy(rng.choice(ODD))
    choice = rng.random()
    if not found or choice > 0.6:
        add(table, rng.choice(options), value)
        return
    *way, last = rng.choice(found)
    owner = follow(table, way)
    if choice < 0.5:
        owner[last] = value
        return
    old = owner.pop(last)
    if isinstance(owner, dict) and rng.random() < 0.5:
        owner[rng.choice(["", "nme", "é", "a.b", f"{last}s"])] = old


def to_toml(value):
    """Write a value as TOML that fits into a line; None as what is no TOML."""
    match value:
        case dict():
            rows = (f"{json.dumps(key)} = {to_toml(x)}" for key, x in value.items())
            return "{" + ", ".join(rows) + "}"
        case list():
            return "[" + ", ".join(map(to_toml, value)) + "]"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case bool():
            return str(value).lower()
    return str(value)


def scratch(rng, data):
    """Put junk into the bytes of a file, or copy some of them, and drop others."""
    start = rng.randrange(len(data) + 1)
    copied = data[: rng.randrange(30)]
    end = start + rng.choice([0, 1, 9])
    return data[:start] + rng.choice([*JUNK, copied]) + data[end:]


def write_broken(rng, command, file):
    """Write a broken config of a command: its table is changed, or its bytes are."""
    text = rng.choice(SHIPPED[command])
    if rng.random() < 0.8:
        table = {} if rng.random() < 0.1 else tomllib.loads(text)
        options = list(list_options(CONFIGS[command]))
        for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
            mutate(rng, table, options)
        rows = (f"{json.dumps(key)} = {to_toml(x)}\n" for key, x in table.items())
        text = "".join(rows)
    data = text.encode()
    if rng.random() < 0.2:
        for _ in range(rng.choice([1, 2, 20])):
            data = scratch(rng, data)
    if rng.random() < 0.04:
        data = rng.choice([*NO_TOML, rng.randbytes(99)])
    file.write_bytes(data)


def write_options(rng, command):
    """Give broken options of a command line."""
    options = list(list_options(CONFIGS[command]))
    for _ in range(rng.choice([1, 1, 2, 3])):
        option, value = ".".join(rng.choice(options)), rng.choice([*ODD, *NO_VALUES])
        text = value if isinstance(value, str) else to_toml(value)
        named = f"--{option}={text}"
        yield rng.choice([named, named, f"--{option}+={text}", text, f"--{option}"])


def write_command(seed, command, file):
    """Give a broken command line; the config that it names is written, too."""
    rng, argv = random.Random(f"{command} {seed}"), [command]
    if rng.random() < 0.8:
        write_broken(rng, command, file)
        argv.append(f"--config={file.name}")
    if len(argv) == 1 or rng.random() < 0.2:
        argv += write_options(rng, command)
    return argv


@functools.cache
def make_data(count):
    """Make examples that are all alike."""
    return Examples(jnp.zeros((count, 2)), jnp.zeros(count, jnp.int32))


def build_small_task(config):
    """Stand in for `build_task`: two parameters, and nothing to learn."""
    if config.problem not in BUILT_IN:
        raise ValueError("problem is none that comes along")
    check_call(getattr(built_in, config.problem), config.arguments, "arguments")

    def init(key):
        return {"w": jnp.zeros(2)}

    rows = Rows(make_data(1437), config.batch_size, config.epoch_steps)
    return Task(rows, None, init, None, None, ("accuracy",), {}, "loss")


class SmallTrainer:
    """Stand in for `Trainer`: refuse what it refuses before it compiles."""

    def __init__(self, config):
        steps = config.epochs * build_small_task(config).batches.steps
        schedule = build_schedule(config.optimizer, steps)
        tx = build_optimizer(config.optimizer, schedule)
        jax.eval_shape(tx.init, {"w": jnp.zeros(2)})


@pytest.fixture
def compile_nothing(monkeypatch):
    """Leave out what takes long: data, models, compilation."""
    monkeypatch.setattr(run, "Trainer", SmallTrainer)
    monkeypatch.setattr(study, "build_task", build_small_task)
    monkeypatch.setattr(Population, "_trace", lambda self: None)
    monkeypatch.setattr(paths, "_compile", lambda *args: args)


@pytest.mark.parametrize("command", CONFIGS)
def test_what_is_broken_is_refused_in_a_sentence(
    command, tmp_path, monkeypatch, compile_nothing
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "broken.toml"
    accepted = 0
    for seed in range(TRIALS):
        argv = write_command(seed, command, file)
        try:
            accepted += callable(commands.prepare(argv))
        except ValueError as error:
            check_sentence(str(error))
    # Some changes do no harm; if all did, what comes after the parser was not tried.
    assert 0.05 < accepted / TRIALS < 0.5
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def check_sentence(message):
    """Check that a message is short, one line, and about TOML rather than Python."""
    assert len(message) <= LONGEST
    assert message.isprintable()
    for word in ("Traceback", "Namespace(", "<class", "object at 0x"):
        assert word not in message
