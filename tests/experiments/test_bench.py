"""The benchmark: that it measures steps of Adam, what it writes, what it refuses."""

import json
import math
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

from adam_jax.experiments.bench import problems, steppers, timing
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.plan import BenchConfig, make_plan
from adam_jax.experiments.bench.problems import Problem, parse_size
from adam_jax.experiments.bench.report import BenchReport
from adam_jax.experiments.bench.steppers import draw_grads
from adam_jax.experiments.cli import main
from adam_jax.experiments.machine import PACKAGES
from adam_jax.fused.cpu import native

BUILT = native.available()
NATIVE = ("bare_loop", "fused_step") if BUILT else ()
NAMES = ("adamw", "record_one_every_100", *NATIVE)
TINY = ("bench", "--sizes", "64", "4096", "3x2^5", "--repeats=2")
SIZE = ("size", "parameters", "leaves")
# 8-bit codes are for leaves of 4,096 elements or more.
SHAPES = ((2, 4096), (3, 5), (), (17,))
LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 0.02, "8bit": 0.1}
MISTAKES = {
    "a size": ("--sizes=2^x", r"size '2\^x' is unknown: give a number of parameters"),
    "no parameters": ("--sizes=0", r"size '0' is unknown"),
    "a format": (
        "--formats=4bit",
        r"format '4bit' is unknown: choose from float32, .*8bit",
    ),
    "a candidate": (
        "--candidates=adam",
        r"candidate 'adam' is unknown: choose from opt",
    ),
    "a base": ("--base=adam", r"base 'adam' is unknown: choose from optax, "),
    "one pair": ("--repeats=1", r"repeats is 1, but must be 2 or more"),
    "a word": ("--repeats=x", r"repeats: expected int, got x"),
    "no folder": (
        "--json=no/such/x.json",
        r"cannot write no.such.x.json: No such file",
    ),
    "a folder": ("--json=.", r"cannot write \.: Is a directory"),
    "no picture": (
        "--picture=x.docx",
        r"cannot draw x.docx: its name must end in .png",
    ),
}


def expected_params(grads, steps, inside):
    """Take the steps with Optax, one by one."""
    tx = optax.adamw(1e-3)
    params = [jnp.zeros(x.shape, jnp.float32) for x in grads]
    state = tx.init(params)
    for _ in range(steps):
        now = [p - g for p, g in zip(params, grads, strict=True)] if inside else grads
        updates, state = tx.update([x.astype(jnp.float32) for x in now], state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("name", "format"), [(k, f) for k, v in CANDIDATES.items() for f in v.formats]
)
def test_every_candidate_takes_the_steps_of_adamw(name, format):
    candidate = CANDIDATES[name]
    if why := candidate.why_missing():
        pytest.skip(why)
    grads = draw_grads(Problem("test", SHAPES), FORMATS[format].dtype)
    stepper = candidate.make(FORMATS[format], grads)
    stepper.run(1)
    stepper.run(4)
    expected = expected_params(grads, 5, inside=name.endswith("_grads"))
    for found, exact in zip(stepper.params(), expected, strict=True):
        assert found.shape == exact.shape
        error = np.abs(found - exact).mean() / 5e-3  # of the way that it went
        bound = LARGEST_ERROR[format.removeprefix("pure_")]
        assert error < bound
    assert stepper.state_bytes < stepper.peak_bytes
    arrays = jax.tree.leaves(grads)
    assert stepper.peak_bytes >= 2 * sum(x.nbytes for x in arrays)


@pytest.mark.skipif(not BUILT, reason="the native library was not built")
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_bare_loop_shares_every_element(threads, monkeypatch):
    monkeypatch.setattr(steppers, "cores", lambda: threads)
    shapes = ((1,), (0,), (31,), (100, 3), (16,), (5,))
    grads = draw_grads(Problem("test", shapes), jnp.float32)
    loop = steppers.BareLoop(grads)
    loop.run(3)
    expected = expected_params(grads, 3, inside=False)
    for found, exact in zip(loop.params(), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_a_run_leaves_figures_and_a_picture(tmp_path, capfd):
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "png")}
    options = ("--formats", "float32", "8bit", "--candidates", "optax", *NAMES)
    paths = (f"--json={files['json']}", f"--picture={files['png']}")
    assert main([*TINY, *options, *paths]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    found = json.loads(files["json"].read_text())
    assert set(found) == {"machine", "skipped", "rows"}
    machine = found["machine"]
    assert machine["cores"] > 0
    assert machine["cpu"]
    assert len(machine["load_average"]) == 3
    assert set(machine["versions"]) == set(PACKAGES)
    assert machine["versions"]["jax"] == jax.__version__
    formats = {"optax": 1, "adamw": 2, "fused_step": 2}
    count = sum(formats.get(name, 1) for name in ("optax", *NAMES))
    assert len(found["rows"]) == 3 * count
    sizes = {tuple(row[key] for key in SIZE) for row in found["rows"]}
    assert sizes == {("64", 64, 1), ("4096", 4096, 1), ("3x2^5", 96, 3)}
    for row in found["rows"]:
        assert row["candidate"] in CANDIDATES
        assert row["base"] == ("adamw" if "record" in row["candidate"] else "optax")
        assert row["pairs"] == 2
        low, high = row["speed_quartiles"]
        assert 0 < low <= row["speed"] <= high
        per_parameter = 1e6 * row["milliseconds"] / row["parameters"]
        assert math.isclose(per_parameter, row["nanoseconds_per_parameter"])
        assert row["steps_in_a_turn"] % CANDIDATES[row["candidate"]].cycle == 0
        assert (row["compile_seconds"] is None) == (row["candidate"] == "bare_loop")
        assert row["state_bytes_per_parameter"] >= 2
        assert f"{row['size']} {row['candidate']}, {row['format']}: " in out
    assert "3x2^5: 96 parameters" in out
    assert "…" not in out
    image = matplotlib.image.imread(files["png"])[..., :3]
    height, width = (size // 2 for size in image.shape[:2])
    for quarter in (image[:height, :width], image[height:, width:]):
        assert quarter.std() > 0.05


def test_ctrl_c_saves_what_is_measured(tmp_path, capfd, monkeypatch):
    def interrupt(self, row):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(BenchReport, "show", interrupt)
    paths = [tmp_path / "bench.json", tmp_path / "bench.png"]
    options = [f"--{k}={v}" for k, v in zip(("json", "picture"), paths, strict=True)]
    assert main([*TINY, "--candidates=optax", *options]) == 130
    out, err = capfd.readouterr()
    assert err == "adam-jax: error: interrupted\n"
    assert "64: 64 parameters" in out
    assert len(json.loads(paths[0].read_text())["rows"]) == 1
    assert paths[1].stat().st_size > 0


def test_quick_measures_everything_but_diagnostics(capfd):
    plan = make_plan(BenchConfig(quick=True))
    names = {cell.candidate for cell in plan.cells}
    left_out = {name for name in CANDIDATES if name.startswith("record")}
    assert names == set(CANDIDATES) - left_out - set(plan.missing)
    assert plan.repeats < make_plan(BenchConfig()).repeats


def test_diagnostics_are_measured_at_two_sizes_or_where_asked():
    def sizes(**options):
        cells = make_plan(BenchConfig(**options)).cells
        return {c.problem.name for c in cells if c.candidate == "record_all"}

    assert sizes() == {"2^24", "150x2^17"}
    assert sizes(sizes=["64"]) == {"64"}


def test_another_base(capfd):
    options = ("--candidates", "optax", "--base", "adamw", "--formats", "float32")
    assert main(["bench", "--sizes", "64", "--repeats=2", *options]) == 0
    assert " x adamw" in capfd.readouterr().out


def test_what_does_not_fit_into_memory_is_left_out(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(problems, "available_bytes", lambda: 100 * 60)
    path = tmp_path / "bench.json"
    command = ["bench", "--sizes", "2^20", "64", "--candidates", "optax", "--repeats=2"]
    assert main([*command, "--formats=float32", f"--json={path}"]) == 0
    sentence = r"without 2\^20: it needs about 0.1 GB of memory, and 0.0 are free"
    assert re.search(sentence, capfd.readouterr().out)
    found = json.loads(path.read_text())
    assert [row["size"] for row in found["rows"]] == ["64"]
    assert "2^20" in found["skipped"]


def test_free_memory_is_known():
    assert 0 < problems.available_bytes() < math.inf


@pytest.mark.parametrize(("option", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(option, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--quick", option]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("adam-jax: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not list(Path().iterdir())


def test_a_candidate_that_is_not_installed(capfd, monkeypatch):
    missing = CANDIDATES["torch"]._replace(why_missing=lambda: "torch is not installed")
    monkeypatch.setitem(CANDIDATES, "torch", missing)
    assert main(["bench", "--candidates=torch"]) == 2
    sentence = "torch cannot be measured here: torch is not installed"
    assert sentence in capfd.readouterr().err
    assert make_plan(BenchConfig()).missing["torch"] == "torch is not installed"


def test_no_candidate_is_left(capfd):
    assert main(["bench", "--candidates=optax", "--formats=8bit"]) == 2
    assert "no candidate that is left knows 8bit" in capfd.readouterr().err


def test_help_has_an_example_and_every_candidate(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    out = capfd.readouterr().out
    assert "adam-jax bench --json bench.json --picture bench.png" in out
    assert all(f"  {name} " in out for name in CANDIDATES)


def test_sizes():
    assert parse_size("2^12") == Problem("2^12", ((4096,),))
    assert parse_size("300x4096").shapes == ((4096,),) * 300
    assert parse_size("2x3^2").parameters == 18
    gpt2 = parse_size("gpt2")
    assert len(gpt2.shapes) == 148
    assert gpt2.parameters == 124_439_808  # as the published model has


class Clock:
    """A clock that only steps move forward."""

    now = 0.0

    def stepper(self, seconds):
        """Return a stepper whose steps take so long, in turn."""
        clock, taken = self, []

        class Fake:
            compile_seconds, state_bytes, peak_bytes = None, 0, 0

            def run(self, steps):
                taken.append(steps)
                clock.now += steps * seconds[len(taken) % len(seconds)]

            def params(self):
                return []

        return Fake(), taken


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    return clock


def test_the_ratio_is_the_median_over_pairs(clock):
    base, base_turns = clock.stepper([15e-3])
    other, turns = clock.stepper([7.5e-3, 3.75e-3, 30e-3])
    found = timing.compare(base, other, cycle=1, repeats=9, budget=math.inf)
    assert math.isclose(found.speed, 2)
    assert np.allclose(found.quartiles, (0.5, 4))
    assert math.isclose(found.seconds, 7.5e-3)
    assert math.isclose(found.base_seconds, 15e-3)
    assert (found.pairs, found.steps) == (9, 2)
    assert turns[1:] == base_turns[4:] == [2] * 9


def test_turns_are_whole_cycles_and_a_budget_ends_them(clock):
    base, _ = clock.stepper([1e-3])
    other, turns = clock.stepper([1.0])
    found = timing.compare(base, other, cycle=100, repeats=25, budget=10)
    assert turns[1:] == [100] * 3
    assert found.pairs == 3
