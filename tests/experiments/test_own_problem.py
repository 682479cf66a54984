"""Problems of one's own: from a file to a page, and what is wrong with one."""

import json
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adam_jax.experiments import Problem, nnx_problem
from adam_jax.experiments.cli import main
from adam_jax.experiments.problems import tasks
from adam_jax.experiments.problems.tasks import build_task
from adam_jax.experiments.running.training import Trainer
from adam_jax.experiments.settings.config import OptimizerConfig, TrainConfig

KEY = jax.random.key(3)
X = np.linspace(-1, 1, 24, dtype=np.float32)

LINE = """
import jax.numpy as jnp
import numpy as np
from adam_jax.experiments import Problem

X = np.linspace(-1, 1, 24, dtype=np.float32)
ROWS = {"x": X, "y": 3 * X}


def loss(params, batch, key):
    return jnp.mean((params["slope"] * batch["x"] - batch["y"]) ** 2)


def make(slope: float = 0.0, **others):
    options = {
        "init": lambda key: {"slope": jnp.float32(slope)},
        "loss": loss,
        "train": ROWS,
        "metrics": lambda params, batch: {"slope": params["slope"]},
    }
    return Problem(**options | others)
"""


def line(**others):
    """Make the problem of LINE."""
    space = {}
    exec(LINE, space)
    return space["make"](**others)


def read_lines(path):
    """Read a file of lines of JSON."""
    return [json.loads(text) for text in Path(path).read_text().splitlines()]


def batches_of(size, rows=24):
    """Cut the rows of LINE into batches."""
    starts = range(0, rows, size)
    return [{"x": X[n : n + size], "y": 3 * X[n : n + size]} for n in starts]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Stand in an empty folder, with LINE in the file line.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    (tmp_path / "line.py").write_text(LINE)
    return tmp_path


@pytest.fixture
def use(monkeypatch):
    """Give a function that builds the task of a problem made here."""

    def build(problem, **options):
        monkeypatch.setattr(tasks, "load_problem", lambda *_: problem)
        config = TrainConfig(problem="line.py", **{"batch_size": 4} | options)
        return config, build_task(config)

    return build


def test_the_template_trains_and_every_command_takes_it(here, capfd):
    assert main(["new", "mine.py"]) == 0
    assert "adam-jax train --problem mine.py" in capfd.readouterr().out
    assert "--problem mine.py" in (here / "mine.py").read_text()
    short = ["--epochs=2", "--arguments.width=4", "--batch_size=1000"]
    assert main(["train", "--problem=mine.py", *short]) == 0
    first, second = read_lines("runs/mine/metrics.jsonl")
    assert second["train_loss"] < first["train_loss"]
    assert 0.3 < second["metrics"]["accuracy"] <= 1
    with np.load("runs/mine/params.npz") as params:
        assert params["first.kernel"].shape == (2, 4)
    assert main(["inspect", "runs/mine"]) == 0
    assert main(["train", "--resume=runs/mine"]) == 0
    assert "finished" in capfd.readouterr().out
    sweep = ["--problem=mine.py:make", "--grid.learning_rate=[0.01, 0.1]", *short]
    assert main(["sweep", '--optimizers=[{"name": "lion"}]', *sweep]) == 0
    assert "test accuracy" in capfd.readouterr().out
    assert main(["report", "runs/mine"]) == 0
    page = (here / "runs/mine/report.html").read_text()
    assert "mine.py, trained by adam" in page
    assert main(["report", "runs/sweep"]) == 0
    assert main(["new", "mine.py"]) == 2
    assert "mine.py is there already" in capfd.readouterr().err


def test_metrics_of_ones_own_are_shown(here, capfd):
    options = ["--epochs=2", "--batch_size=4", "--optimizer.learning_rate=0.1"]
    assert main(["train", "--problem=line.py", *options]) == 0
    out = capfd.readouterr().out
    _, last = read_lines("runs/line/metrics.jsonl")
    assert f"test slope {last['metrics']['slope']:.4g}" in out
    assert "│ test slope" in out and "accuracy" not in out
    # 5 of 24 are kept for the test.
    assert last["step"] == 2 * (19 // 4)


def test_a_module_is_found_by_its_name(here):
    (here / "package").mkdir()
    (here / "package" / "lines.py").write_text(LINE)
    task = build_task(TrainConfig(problem="package.lines:make", batch_size=4))
    assert task.metrics == ("slope",)
    config = TrainConfig(problem="line.py", batch_size=4, arguments={"slope": 2.0})
    assert build_task(config).init(KEY)["slope"] == 2


def test_batches_are_taken_in_their_order_pass_after_pass(use):
    seen = []

    def loss(params, batch, key):
        jax.debug.callback(lambda x: seen.append(x.tolist()), batch["x"])
        return params["slope"] ** 2

    batches = batches_of(5)  # the last of them has 4: it is left out
    problem = line(train=batches, test=batches, loss=loss, metrics=None)
    config, _ = use(problem, epochs=3, epoch_steps=3)
    list(Trainer(config).segments())
    jax.effects_barrier()
    taken = [x for x in seen if len(x) == 5]  # the test has all 24
    assert taken == [batches[n % 4]["x"].tolist() for n in range(9)]


@pytest.mark.parametrize("given", ["a list", "a function"])
def test_batches_and_rows_lead_to_the_same(use, monkeypatch, given):
    monkeypatch.setattr(tasks, "TESTED_AT_ONCE", 7)
    whole = {"x": X, "y": 3 * X}
    batches = [whole] * 2 if given == "a list" else lambda: iter([whole] * 2)
    options = {"batch_size": 24, "epochs": 2, "epoch_steps": 2}
    options |= {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.3)}
    found = []
    for train in (whole, batches):
        steps = {"epoch_steps": 1, "epochs": 4} if train is whole else {}
        config, _ = use(line(train=train, test=whole), **options | steps)
        trainer = Trainer(config)
        *_, last = filter(None, trainer.segments())
        found.append((float(trainer.carry.params["slope"]), last.test_loss))
    # The order of a sum is not the same.
    np.testing.assert_allclose(*found, rtol=1e-5)
    slope, loss = found[0]
    assert slope == pytest.approx(3 * (1 - (1 - 0.6 * np.mean(X**2)) ** 4), rel=1e-5)
    assert loss == pytest.approx((slope - 3) ** 2 * np.mean(X**2), rel=1e-4)


def test_where_segments_and_chunks_of_batches_end_changes_no_bit(use, monkeypatch):
    rng = np.random.default_rng(0)
    batches = [{"x": x, "y": 3 * x} for x in rng.random((7, 4), np.float32)]
    problem = line(train=batches, test=batches)
    expected = None
    for size, every in ((2**25, None), (64, None), (64, 1), (1, 3)):
        monkeypatch.setattr("adam_jax.experiments.problems.batches.CHUNK_BYTES", size)
        config, _ = use(problem, epochs=2)
        trainer = Trainer(config)
        epochs = [epoch for epoch in trainer.segments(every) if epoch]
        assert epochs == (expected or epochs)
        expected = epochs
    # Another trainer goes on in the midst of it.
    trainer, other = Trainer(config), Trainer(config)
    for _ in trainer.segments(1):
        if trainer.step == 10:
            break
    other.step, other.carry = trainer.step, trainer.carry
    assert [epoch for epoch in other.segments() if epoch] == expected[1:]


def test_a_study_of_batches_comes_to_what_its_runs_come_to(here, monkeypatch):
    monkeypatch.setattr("adam_jax.experiments.problems.batches.CHUNK_BYTES", 64)
    text = LINE.replace('"train": ROWS', '"train": BATCHES, "test": ROWS')
    cut = (
        "BATCHES = [{k: v[n:n + 4] for k, v in ROWS.items()} for n in range(0, 24, 4)]"
    )
    (here / "line.py").write_text(
        text.replace("\n\n\ndef loss", f"\n{cut}\n\n\ndef loss")
    )
    options = ["--problem=line.py", "--epochs=2"]
    sgd = ["--optimizer.name=sgd", "--optimizer.learning_rate=0.1"]
    assert main(["train", *options, *sgd]) == 0
    grid = ["--grid.learning_rate=[0.1, 0.2]", "--memory=1"]
    assert main(["sweep", '--optimizers=[{"name": "sgd"}]', *options, *grid]) == 0
    epochs = read_lines("runs/line/metrics.jsonl")
    member, _ = read_lines("runs/sweep/members.jsonl")
    for curve in ("train_loss", "test_loss"):
        np.testing.assert_allclose(member[curve], [x[curve] for x in epochs], rtol=1e-5)
    slopes = [epoch["metrics"]["slope"] for epoch in epochs]
    np.testing.assert_allclose(member["metrics"]["slope"], slopes, rtol=1e-5)


class Noisy(nnx.Module):
    """Multiply by a weight, and drop half."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jnp.float32(2.0))
        self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return self.second(self.first(self.weight * x))


def test_a_module_drops_in_training_only_and_anew_in_each_step():
    problem = nnx_problem(
        build=lambda key: Noisy(nnx.Rngs(key)),
        loss=lambda module, batch, key: module(batch).sum(),
        train=jnp.ones(1000),
        metrics=lambda module, batch: {"mean": module(batch).mean()},
    )
    params = problem.init(KEY)
    assert params == {"weight": 2}
    loss = jax.jit(problem.loss)
    one, two = (float(loss(params, problem.train, jax.random.key(n))) for n in (0, 1))
    assert one != two and one == float(loss(params, problem.train, jax.random.key(0)))
    # A quarter of 1,000 is kept and counts 2 * 4; both layers must draw for themselves.
    deviation = 8 * (1000 * 0.25 * 0.75) ** 0.5
    assert abs(one - 2000) < 5 * deviation and abs(two - 2000) < 5 * deviation
    measured = problem.metrics(params, problem.train)
    assert measured == {"loss": 2000, "mean": 2}


def test_statistics_of_batches_are_refused():
    with pytest.raises(ValueError, match="holds BatchStat beside its parameters"):
        nnx_problem(
            build=lambda key: nnx.BatchNorm(3, rngs=nnx.Rngs(key)),
            loss=lambda module, batch, key: module(batch).sum(),
            train=jnp.ones((4, 3)),
        )


def test_many_examples_are_tested_in_blocks(use, monkeypatch):
    monkeypatch.setattr(tasks, "TESTED_AT_ONCE", 5)
    sizes = []

    def metrics(params, batch):
        sizes.append(batch["x"].shape)
        return {"mean": jnp.mean(batch["x"] ** 2)}

    rows = {"x": X, "y": X}
    _, task = use(line(test=rows, metrics=metrics))
    loss, measured = task.test({"slope": 0.0}, rows)
    assert loss == pytest.approx(np.mean(X**2), rel=1e-6)
    assert measured["mean"] == pytest.approx(np.mean(X**2), rel=1e-6)
    assert set(sizes) == {(5,), (4,)}


WRONG = {
    "no file": ("--problem=none.py", "problem is 'none.py', but there is no such file"),
    "no module": (
        "--problem=none.at:all",
        "problem is 'none.at', but there is no such module",
    ),
    "no function": ("--problem=line.py:build", "but line.py has no build()"),
    "no word": (
        "--problem=digit",
        "mnist, words, topics, wilson, module:function or a f",
    ),
    "no problem": ("--problem=os:getpid", "os:getpid gives a value of type int, but "),
    "no argument": ("--arguments.width=3.5", None),
    "an argument of digits": (
        ("--problem=digits", "--arguments.width=3"),
        "arguments: got an unexpected keyword argument 'width': did you mean widths?",
    ),
    "too large a batch": ("--batch_size=30", "there are only 19 training examples"),
    "no accuracy": (
        ("--measure=test_error", "--grid.learning_rate=[0.1]"),
        "measure is 'test_error', but must be a loss: there is no accuracy",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(case, here, capfd):
    options, message = WRONG[case]
    options = (options,) if isinstance(options, str) else options
    study = "--measure=test_error" in options
    command = ["sweep", '--optimizers=[{"name": "sgd"}]'] if study else ["train"]
    argv = [*command, "--problem=line.py", "--epochs=1", "--batch_size=4", *options]
    if message is None:  # what takes **others takes any
        assert main(argv) == 2
        error = capfd.readouterr().err
        assert "line.py" in error and "width" in error
        return
    assert main(argv) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert message in error
    assert not (here / "runs").exists()


FAULTS = {
    "no scalar": (
        {"loss": lambda params, batch, key: batch["x"]},
        "float32[4], but",
    ),
    "a whole loss": (
        {"loss": lambda *_: jnp.int32(1)},
        "int32[], but must",
    ),
    "whole parameters": (
        {"init": lambda key: {"n": jnp.arange(3)}},
        "'n' the dtype",
    ),
    "no parameters": ({"init": lambda key: {}}, "init of line.py gives no parameters"),
    "an iterator": (
        {"train": iter([]), "test": X},
        "an iterator, which can",
    ),
    "no batches": ({"train": [], "test": X}, "train gives no batches"),
    "no test": ({"train": batches_of(4)}, "must give test, too"),
    "no data": ({"train": 3, "test": X}, "train is of type int, but must be arrays"),
    "no length": (
        {"train": lambda: iter(batches_of(4)), "test": {"x": X, "y": X}},
        "set --epoch_steps",
    ),
    "a baseline of nothing": (
        {"baselines": {"slop": 1.0}},
        "a name among baselines is 'slop', but must be that of a metric",
    ),
    "text": ({"train": {"x": X, "y": X.astype(str)}}, "train holds the dtype <U"),
    "objects": (
        {"train": {"x": X, "y": X.astype(object)}},
        "train holds the dtype object",
    ),
    "batches of text": (
        {"train": [{"x": X, "y": X.astype(str)}], "test": {"x": X, "y": X}},
        "a batch of train holds the dtype <U",
    ),
    "unlike rows": ({"train": {"x": X, "y": X[:3]}}, "shapes (24,), (3,), but each"),
    "unlike batches": (
        {
            "train": [{"x": X, "y": X}, {"x": X, "y": X.astype(int)}],
            "test": [*batches_of(4)],
        },
        "all must be alike",
    ),
    "another test": ({"test": {"x": X, "y": X[:, None]}}, "they must be alike"),
    "a name that is taken": (
        {"metrics": lambda params, batch: {"test_loss": 0.0}},
        "'test_loss', but must be none of",
    ),
    "a metric of each": (
        {"metrics": lambda params, batch: {"x": batch["x"]}},
        "gives 'x' the shape (5,), but",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_problem_of_no_use_is_refused(case, use):
    changes, message = FAULTS[case]
    with pytest.raises(ValueError) as error:
        _, task = use(line(**changes))
        for step in range(3):
            task.batches.read(0, step)
    assert message in str(error.value)


@pytest.mark.parametrize("where", ["make", "init", "loss", "metrics", "import"])
def test_an_error_of_the_problem_is_shown_with_its_place(where, here, capfd):
    broken = textwrap.dedent(
        """
        def broken(*args):
            raise RuntimeError("out of luck")
        """
    )
    call = {
        "make": "def make(): broken()",
        "import": "broken()",
    }.get(where, f"old = make\ndef make(): return old({where}=broken)")
    (here / "line.py").write_text(f"{LINE}\n{broken}\n{call}\n")
    assert main(["train", "--problem=line.py", "--epochs=1", "--batch_size=4"]) == 2
    error = capfd.readouterr().err
    assert 'line.py", line' in error and "in broken" in error
    assert error.splitlines()[-1].startswith("adam-jax: error: ")
    assert error.endswith("line.py: RuntimeError: out of luck\n")


def test_what_an_optimizer_alone_takes_is_set_by_name(here, capfd):
    options = ["--problem=line.py", "--epochs=1", "--batch_size=4"]
    swats = [*options, "--optimizer.name=swats"]
    assert main(["train", *swats, "--optimizer.arguments.tolerance=0.01"]) == 0
    for name, value, message in (
        (
            "tolerances",
            "0.01",
            "arguments.tolerances is set, but what swats",
        ),
        ("b1", "0.5", "arguments.b1 is set, but what swats takes there is tolerance"),
        ("tolerance", "-1", "tolerance"),
        ("tolerance", "x", "tolerance"),
    ):
        assert main(["train", *swats, f"--optimizer.arguments.{name}={value}"]) == 2
        assert message in capfd.readouterr().err
    assert main(["train", *options, "--optimizer.arguments.nesterov=true"]) == 2
    assert "what adam takes there is " in capfd.readouterr().err


def test_a_problem_is_made_of_pure_functions():
    problem = Problem(lambda key: {"w": jnp.ones(2)}, lambda params, batch, key: 0.0, X)
    assert problem.test == 0.2 and problem.metrics is None and not problem.baselines


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        ("package.module:make", "module"),
        ("a.b.c:other", "c"),
        ("folder/file.py", "file"),
        ("digits", "digits"),
    ],
)
def test_a_run_is_named_after_the_module_of_its_problem(problem, name):
    assert TrainConfig(problem=problem).run_name == name
