"""From the problem that a config names to what is trained and tested, checked."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adam_jax.experiments.interrupts import Faulty
from adam_jax.experiments.metrics import LOSS
from adam_jax.experiments.problems.batches import (
    SPLIT_SEED,
    Rows,
    Stream,
    count_rows,
    count_tested,
    describe,
    holds_rows,
    read_rows,
)
from adam_jax.experiments.problems.problem import TEST_SEED, Problem
from adam_jax.experiments.settings.arguments import check_call
from adam_jax.experiments.settings.config import (
    BUILT_IN,
    MAKE,
    TaskConfig,
    require,
    require_known,
    require_label,
)

HOME = "adam_jax.experiments.problems.built_in"
TESTED_AT_ONCE = 4096  # examples
TAKEN = ("train_loss", "test_loss", "test_error", "learning_rate", "skipped")


class Task(NamedTuple):
    """Hold a problem ready to be trained; what is named as in `Problem` is as there."""

    batches: Rows | Stream
    examples: Any  # what is tested on, an example in each row
    init: Callable[[Array], Any]
    loss: Callable[[Any, Any, Array], Array]  # with the penalty of the config
    # Maps (params, examples) to the test loss, and to the other metrics by name.
    test: Callable[[Any, Any], tuple[Array, dict[str, Array]]]
    metrics: tuple[str, ...]  # their names
    baselines: Mapping[str, float]
    loss_name: str


def build_task(config: TaskConfig) -> Task:
    """Load the problem of a config, and check what it gives; its errors are Faulty."""
    problem = load_problem(config.problem, config.arguments)
    batches, examples = _read_data(problem, config)
    params = _check_functions(problem, batches.batch, config.problem)

    def loss(params: Any, batch: Any, key: Array) -> Array:
        found = problem.loss(params, batch, key)
        if config.penalty:
            found += config.penalty / 2 * optax.tree.norm(params, squared=True)
        return found

    def test(params: Any, examples: Any) -> tuple[Array, dict[str, Array]]:
        measured = _average(lambda batch: _measure(problem, params, batch), examples)
        return measured.pop(LOSS), measured

    with _theirs(f"metrics of {config.problem}"):
        _, metrics = jax.eval_shape(test, params, examples)
    for name, value in metrics.items():
        require_label("a name among metrics", name)
        expected = f"none of {', '.join(TAKEN)}"
        require(name not in TAKEN, "a name among metrics", name, expected)
        if value.shape:
            raise ValueError(
                f"metrics of {config.problem} gives {name!r} the shape {value.shape}, "
                "but it must be a scalar"
            )
    for name in problem.baselines:
        require_known("a name among baselines", name, metrics, "that of a metric")
    return Task(
        batches,
        examples,
        problem.init,
        loss,
        test,
        tuple(metrics),
        problem.baselines,
        problem.loss_name,
    )


def load_problem(place: str, arguments: dict[str, Any]) -> Problem:
    """Import the function that a config names, and call it.

    It is `package.module:function`, `path/to/file.py:function`, or one of those that
    come along; without a function, it is `make`.
    """
    comes_along = place in BUILT_IN
    source, _, name = (f"{HOME}:{place}" if comes_along else place).partition(":")
    make = getattr(_import(source), name or MAKE, None)
    if not callable(make):
        raise ValueError(f"problem is {place!r}, but {source} has no {name or MAKE}()")
    checked = check_call(make, arguments, "arguments")
    # What those that come along refuse is said in one sentence.
    with contextlib.nullcontext() if comes_along else _theirs(place):
        problem = make(**checked)
    if not isinstance(problem, Problem):
        raise ValueError(
            f"{place} gives a value of type {type(problem).__name__}, but must give "
            "an adam_jax.experiments.Problem"
        )
    return problem


def _import(source: str) -> Any:
    """Import a module by its name, or a file."""
    path = Path(source)
    if path.suffix != ".py":
        sys.path.insert(0, "")  # as python -m does
        with contextlib.suppress(ModuleNotFoundError):  # of a package around it
            if importlib.util.find_spec(source):
                with _theirs(source):
                    return importlib.import_module(source)
        raise ValueError(f"problem is {source!r}, but there is no such module")
    spec = importlib.util.spec_from_file_location(f"problem_{path.stem}", path)
    if not (path.is_file() and spec and spec.loader):
        raise ValueError(
            f"problem is {source!r}, but there is no such file in {Path.cwd()}"
        )
    sys.path.insert(0, str(path.parent.absolute()))  # as python does
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with _theirs(source):
        spec.loader.exec_module(module)
    return module


def _read_data(problem: Problem, config: TaskConfig) -> tuple[Rows | Stream, Any]:
    """Give what is learned from, and what is tested on."""
    train, test = problem.train, problem.test
    kept_back = isinstance(test, int | float)
    if not holds_rows(train):
        if kept_back:
            raise ValueError(
                "train is no pytree of arrays with an example in each row; of batches, "
                "none are kept for testing: the problem must give test, too"
            )
        batches = Stream(train, config.epoch_steps)
    else:
        train = read_rows(train, "train")
        if kept_back:
            train, test = _split(train, test)
        batches = Rows(train, config.batch_size, config.epoch_steps)
    examples = read_rows(test, "test")
    if not count_rows(examples, "test"):
        raise ValueError("test holds no examples")
    kinds = [
        jax.tree.map(lambda x: f"{x.dtype}{[..., *x.shape[1:]]}", rows)
        for rows in (batches.batch, examples)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"batches of train are {kinds[0]}, but test is {kinds[1]}: they must be "
            "alike"
        )
    return batches, examples


def _split(rows: Any, share: float) -> tuple[Any, Any]:
    """Keep a share of the examples for testing, always the same ones."""
    count = count_rows(rows, "train")
    kept = count_tested(count, share)
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    parts = np.sort(order[kept:]), np.sort(order[:kept])
    return tuple(jax.tree.map(lambda x, part=part: x[part], rows) for part in parts)


def _check_functions(problem: Problem, batch: Any, name: str) -> Any:
    """Check what `init` and `loss` give, and give the shapes of the parameters."""
    key = jax.random.key(0)
    with _theirs(f"init of {name}"):
        params = jax.eval_shape(problem.init, key)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"init of {name} gives no parameters")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"init of {name} gives {where!r} the dtype {leaf.dtype}, but parameters"
                " must be floating: what is not trained belongs into loss itself"
            )
    with _theirs(f"loss of {name}"):
        loss = jax.eval_shape(problem.loss, params, batch, key)
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(
        loss.dtype, jnp.floating
    ):
        raise ValueError(
            f"loss of {name} gives {describe(loss)}, but must give a floating scalar, "
            "as the mean over the batch"
        )
    return params


def _measure(problem: Problem, params: Any, batch: Any) -> dict[str, Array]:
    """Give the test loss of a batch, and its other metrics, in float32."""
    found = dict(problem.metrics(params, batch)) if problem.metrics else {}
    if LOSS not in found:
        found[LOSS] = problem.loss(params, batch, jax.random.key(TEST_SEED))
    return {key: jnp.asarray(value, jnp.float32) for key, value in found.items()}


def _average(measure: Callable[[Any], Any], examples: Any) -> Any:
    """Give the mean of what is measured of examples, not too many of them at once."""
    count = count_rows(examples, "test")
    if count <= TESTED_AT_ONCE:
        return measure(examples)
    blocks = count // TESTED_AT_ONCE
    cut = blocks * TESTED_AT_ONCE
    stacked = jax.tree.map(
        lambda x: x[:cut].reshape(blocks, TESTED_AT_ONCE, *x.shape[1:]), examples
    )
    sums = jax.tree.map(
        lambda x: TESTED_AT_ONCE * x.sum(0), jax.lax.map(measure, stacked)
    )
    if cut < count:
        rest = measure(jax.tree.map(lambda x: x[cut:], examples))
        sums = jax.tree.map(lambda a, b: a + (count - cut) * b, sums, rest)
    return jax.tree.map(lambda x: x / count, sums)


@contextlib.contextmanager
def _theirs(what: str) -> Iterator[None]:
    """Say whose code it was that raised an error."""
    try:
        yield
    except Exception as error:
        raise Faulty(f"{what}: {type(error).__name__}: {error}") from error
