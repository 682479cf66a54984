"""Paths on surfaces: their numbers, the pictures of them, and what is refused."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageColor
from specs import read_panels, read_picture

from adam_jax.experiments.cli import main
from adam_jax.experiments.commands import read_options
from adam_jax.experiments.pictures.drawing import COLOURS, to_picture
from adam_jax.experiments.running.progress import Display
from adam_jax.experiments.settings.config import OptimizerConfig
from adam_jax.experiments.trace import tracing
from adam_jax.experiments.trace.animation import choose_steps
from adam_jax.experiments.trace.path_charts import draw_traces
from adam_jax.experiments.trace.paths import (
    NEAR,
    choose_options,
    compile_traces,
    measure,
    place_surface,
)
from adam_jax.experiments.trace.surfaces import SURFACES
from adam_jax.experiments.trace.trace_config import TraceConfig

# By hand: the loss at points where little can go wrong unseen.
VALUES = {
    "rosenbrock": {(-1.2, 1.0): 4.84 + 100 * 0.44**2, (2.0, 1.0): 901.0},
    "beale": {(1.0, 1.5): 4 + 12.25 + 25, (2.0, -1.0): 6.25 + 5.0625 + 1.890625},
    "ravine": {(-4.0, 1.0): 58.0, (1.0, 0.5): 13.0},
    "turned_ravine": {(1.0, 1.0): 1.0, (1.0, -1.0): 100.0},
    "saddle": {(1.5, 0.0): 1.125, (0.0, 0.5): -0.109375},
    "counterexample": {(0.5, 0.8): 0.5 / 3 + 0.32, (-1.0, 0.0): -1 / 3},
    "random_counterexample": {(0.5, 0.8): 0.5 / 3 + 0.32, (-1.0, 0.0): -1 / 3},
}
TINY = (
    "--surface=rosenbrock",
    "--steps=30",
    "--frames=3",
    '--optimizers=["sgd","adam"]',
)
FILES = {"config.toml", "trace.json", "trace.png"}
MISTAKES = {
    "a surface": ("--surface=himmelblau", r"'himmelblau', but must be one of rosenbro"),
    "an optimizer": (
        '--optimizers=["adamm"]',
        r"a name in optimizers is 'adamm', but must be .* lists: did you mean adam\?$",
    ),
    "an optimizer in settings": (
        "--settings.adam.name=adamm",
        r"settings.adam.name is 'adamm', but must be .* lists: did you mean adam\?$",
    ),
    "no list": ("--optimizers=adam", r"optimizers: .* a list, got \"adam\"$"),
    "another's option": (
        "--settings.adam.momentum=0.9",
        r"settings.adam: momentum is set, but adam does not take it: it takes b1, b2",
    ),
    "an option's range": (
        "--settings.adam.b1=1.5",
        r"settings.adam: b1 must be .* 1\.5",
    ),
    "an option's type": (
        "--settings.adam.b1=x",
        r"settings.adam.b1: .* a valid number, got \"x\"$",
    ),
    "an option's null": (
        "--settings.adam.learning_rate=null",
        r"settings.adam.learning_rate: .* a valid number, got null$",
    ),
    "no option": (
        "--settings.adam.lr=1",
        r"settings.adam.lr is no option: choose from name, learning_rate, .*, guard, ",
    ),
    "a name that cannot be drawn": (
        '--settings={"$": {"name": "adam"}}',
        r"settings is '\$', but must be up to 60 printable characters, without '\$'",
    ),
    "settings of nobody": (
        "--settings.lion.b1=0.5",
        r"settings.lion is set, but optimizers are only sgd, .*: add lion to them",
    ),
    "a long warm-up": (
        "--settings.adam.warmup_steps=9999",
        r"settings.adam: warmup_steps is 9999, but the whole run has 2000 steps",
    ),
    "no rate": ("--learning_rate=0", r"learning_rate: .* greater than 0, got 0$"),
    "no rate of one": (
        "--settings.adam.learning_rate=-1",
        r"settings.adam.learning_rate: .* greater than 0, got -1$",
    ),
    "no steps": ("--steps=0", r"steps: .* greater than 0, got 0$"),
    "many steps": ("--steps=100001", r"steps: .* or equal to 100000, got 100001$"),
    "half a start": ("--start=[1]", r"start is \[1.0\], but must be two numbers from"),
    "a far start": ("--start=[0, 101]", r"must be two numbers from -100 to 100"),
    "a negative seed": ("--seed=-1", r"seed: .* or equal to 0, got -1$"),
    "one frame": ("--frames=1", r"frames: .* greater than 1, got 1$"),
    "endless frames": (
        "--frames=1000000000",
        r"frames: .* or equal to 10000, got 1000000000$",
    ),
    "a path for a name": (
        "--name=../x",
        r"name is '../x', but must be letters, digits",
    ),
    "a kind of file": ("--animation=avi", r"animation: .* 'gif', 'mp4' or 'none', got"),
    "an option": (
        "--sed=1",
        r"unrecognized arguments: --sed=1: did you mean --seed\? ",
    ),
}


def walk(**options):
    """Give the traces of a config."""
    config = TraceConfig(**options)
    surface = place_surface(config)
    return {name: run() for name, run in compile_traces(config, surface).items()}


@pytest.fixture(scope="module")
def counterexample():
    """Give the three paths on each of the counterexamples."""
    names = ("counterexample", "random_counterexample")
    return {name: walk(surface=name) for name in names}


@pytest.fixture
def trace(runs_dir):
    """Give a function that runs `adam-jax trace`, tiny unless told otherwise."""

    def run(*options):
        return main(["trace", f"--runs_dir={runs_dir}", *TINY, *options])

    return run


@pytest.mark.parametrize("name", SURFACES)
def test_a_surface_has_the_values_of_its_formula(name):
    for point, expected in VALUES[name].items():
        assert float(SURFACES[name].loss(jnp.array(point))) == pytest.approx(expected)


def look(surface, points):
    """Give loss, slope and curvatures at each point."""
    loss = surface.loss

    def at(point):
        hessian = jax.hessian(loss)(point)
        return loss(point), jax.grad(loss)(point), jnp.linalg.eigvalsh(hessian)

    return map(np.asarray, jax.jit(jax.vmap(at))(jnp.array(points, jnp.float32)))


@pytest.mark.parametrize("name", SURFACES)
def test_nothing_is_lower_than_the_minima(name):
    surface = SURFACES[name]
    grid = [np.clip(x, -surface.limit, surface.limit) for x in surface.bounds]
    grid = np.stack(np.meshgrid(*(np.linspace(*ends, 41) for ends in grid)), axis=-1)
    count = len(surface.minima)
    losses, slopes, curvatures = look(surface, [*surface.minima, *grid.reshape(-1, 2)])
    assert (losses[:count] <= losses.min() + 1e-7).all()
    if math.isfinite(surface.limit):  # at the end of what is allowed
        np.testing.assert_allclose(slopes[0], [1 / 3, 0], rtol=1e-6)
        assert surface.minima[0][0] == -surface.limit
    else:
        np.testing.assert_allclose(slopes[:count], 0, atol=1e-5)
        assert curvatures[:count].min() > 0.1


def test_the_saddle_is_one():
    loss, slope, curvatures = look(SURFACES["saddle"], [(0.0, 0.0)])
    assert (loss, *slope[0], *curvatures[0]) == (0, 0, 0, -1, 1)


def slopes(surface, count):
    """Give the slope along x of the losses of the first steps."""
    keys = jax.random.split(jax.random.key(0), count)
    slope = jax.grad(surface.step_loss)
    steps = jnp.arange(1, count + 1)
    return np.asarray(
        jax.vmap(lambda *args: slope(jnp.zeros(2), *args)[0])(steps, keys)
    )


def test_the_losses_of_the_counterexample_come_in_turn():
    found = slopes(SURFACES["counterexample"], 7)
    np.testing.assert_array_equal(found, [3, -1, -1, 3, -1, -1, 3])


def test_the_losses_of_the_random_counterexample_are_drawn():
    found = slopes(SURFACES["random_counterexample"], 3000)
    assert set(found) == {3, -1}
    # Five standard deviations of a share of 1/3 among 3,000.
    assert abs((found == 3).mean() - 1 / 3) < 5 * math.sqrt(2 / 9 / 3000)


def test_a_path_is_that_of_a_plain_loop():
    steps, rate, b1, b2 = 80, 0.05, 0.8, 0.99
    options = {"learning_rate": rate, "b1": b1, "b2": b2}
    found = walk(optimizers=("adam",), steps=steps, settings={"adam": options})["adam"]
    point, mu, nu = np.array([-1.2, 1.0]), 0.0, 0.0
    for step in range(steps + 1):
        # Each step adds an error of 1e-7, and none is magnified a hundredfold.
        np.testing.assert_allclose(
            found.points[step], point, atol=1e-5 * (1 + step / 10)
        )
        x, y = point
        loss = (1 - x) ** 2 + 100 * (y - x * x) ** 2
        assert found.losses[step] == pytest.approx(loss, rel=1e-2)
        assert found.distances[step] == pytest.approx(
            math.hypot(x - 1, y - 1), rel=1e-3
        )
        slope = np.array([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)])
        mu = b1 * mu + (1 - b1) * slope
        nu = b2 * nu + (1 - b2) * slope**2
        mu_hat, nu_hat = mu / (1 - b1 ** (step + 1)), nu / (1 - b2 ** (step + 1))
        point = point - rate * mu_hat / np.sqrt(nu_hat)


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_the_counterexample_is_that_of_a_plain_loop(name, counterexample):
    found = counterexample["counterexample"][name]
    x, nu, nu_max, regret = 0.0, 0.0, 0.0, 0.0
    for step in range(1, 1001):
        slope = 3 if step % 3 == 1 else -1
        regret += slope * (x + 1) + found.points[step - 1, 1] ** 2 / 2
        assert found.regrets[step - 1] == pytest.approx(regret / step, rel=1e-3)
        nu = 0.1 * nu + 0.9 * slope**2
        nu_hat = nu / (1 - 0.1**step)
        nu_max = max(nu_max, nu_hat)
        nu_used = nu_hat if name == "adam" else nu_max
        x = min(1.0, max(-1.0, x - 0.02 * slope / math.sqrt(nu_used)))
        assert found.points[step, 0] == pytest.approx(x, abs=1e-4)


@pytest.mark.parametrize("name", ["counterexample", "random_counterexample"])
def test_adam_goes_to_the_worst_end_and_amsgrad_to_the_best(name, counterexample):
    late = {k: v.points[500:, 0].mean() for k, v in counterexample[name].items()}
    regrets = {k: v.regrets for k, v in counterexample[name].items()}
    assert late["adam"] > 0.95
    assert late["amsgrad"] < -0.95
    assert late["sgd"] < -0.85
    # At the worst end it is 2/3.
    assert regrets["adam"][-1] > 0.5
    for other in ("amsgrad", "sgd"):
        assert regrets[other][-1] < 0.1 < regrets[other][300]
    # Beside it, in a plain bowl, all is well, but for steps as long as the rate.
    for found in counterexample[name].values():
        assert abs(found.points[-1, 1]) <= 0.02


def test_what_is_random_depends_on_the_seed(counterexample):
    options = {"surface": "random_counterexample", "optimizers": ("sgd",)}
    first, again = (walk(**options, seed=seed)["sgd"] for seed in (0, 1))
    expected = counterexample["random_counterexample"]["sgd"].points
    np.testing.assert_array_equal(first.points, expected)
    assert not np.array_equal(first.points, again.points)


def test_a_path_is_measured():
    surface = SURFACES["ravine"]
    points = np.array([[-4, 1], [9, 0], [0.006, 0.007], [0, 0], [3, 3], [4, 9]])
    found = measure(surface, OptimizerConfig(), points, np.zeros(6), np.zeros(5))
    assert (found.reached, found.left, found.diverged) == (2, 4, None)
    np.testing.assert_allclose(found.distances[[0, 1, 3]], [math.sqrt(17), 9, 0])
    two = SURFACES["saddle"]
    found = measure(two, OptimizerConfig(), points[[3]], np.zeros(1), np.zeros(0))
    assert found.distances == [1]
    assert (found.reached, found.left) == (None, None)


@pytest.mark.parametrize(("x", "loss"), [(math.nan, 1), (1, math.inf)])
def test_a_path_ends_where_it_diverges(x, loss):
    points = np.array([[0, 0], [0, 0], [x, 1], [0, 0]])
    losses = np.array([1, 1, loss, 1])
    surface = SURFACES["ravine"]
    found = measure(surface, OptimizerConfig(), points, losses, np.arange(3))
    assert found.diverged == 2
    lengths = [len(x) for x in (found.points, found.losses, found.distances)]
    assert lengths == [2, 2, 2]
    assert found.regrets.tolist() == [0]


def test_settings_come_before_the_rate_of_all_before_the_surface():
    settings = {"mine": {"name": "adam", "b1": 0.5}, "lion": {"learning_rate": 7.0}}
    names = ("momentum", "mine", "lion", "nadam", "adagrad")
    chosen = choose_options(TraceConfig(optimizers=names, settings=settings))
    heavy_ball = {"name": "sgd", "momentum": 0.9, "learning_rate": 0.001}
    assert chosen == {
        "momentum": heavy_ball,
        "mine": {"name": "adam", "learning_rate": 0.05, "b1": 0.5},
        "lion": {"name": "lion", "learning_rate": 7.0},
        "nadam": {"name": "nadam", "learning_rate": 0.05},
        "adagrad": {"name": "adagrad", "learning_rate": 0.5},
    }
    options = {"optimizers": names, "settings": settings, "learning_rate": 2.0}
    rates = [
        x["learning_rate"] for x in choose_options(TraceConfig(**options)).values()
    ]
    assert rates == [2, 2, 7, 2, 2]


def test_a_start_that_is_outside_is_drawn():
    surface = place_surface(TraceConfig(start=(3.0, 0.0), steps=7))
    assert (surface.start, surface.steps) == ((3.0, 0.0), 7)
    (left, right), vertical = surface.bounds
    assert left == -2 < 3 < right
    assert vertical == SURFACES["rosenbrock"].bounds[1]


def test_a_run_leaves_its_folder_and_a_summary(trace, runs_dir, capfd):
    assert trace() == 0
    folder = runs_dir / "rosenbrock"
    assert {path.name for path in folder.iterdir()} == {*FILES, "trace.gif"}
    with Image.open(folder / "trace.png") as picture:
        width, height = picture.size
    assert 1200 < width < 1800 and 500 < height < 800
    found = json.loads((folder / "trace.json").read_text())
    assert (found["surface"], found["minima"]) == ("rosenbrock", [[1, 1]])
    assert list(found["paths"]) == ["sgd", "adam"]
    expected = walk(optimizers=("sgd", "adam"), steps=30)
    for name, path in found["paths"].items():
        points = np.array(path["points"], np.float32)
        np.testing.assert_array_equal(points, expected[name].points)
        losses = np.array(path["losses"], np.float32)
        np.testing.assert_array_equal(losses, expected[name].losses)
        regrets = np.array(path["regrets"], np.float32)
        np.testing.assert_array_equal(regrets, expected[name].regrets)
        assert len(path["distances"]) == 31
        assert path["settings"]["name"] == name
    assert found["paths"]["sgd"]["settings"]["learning_rate"] == 0.001
    out, err = capfd.readouterr()
    assert err == ""
    assert "animation: frame 3/3" in out
    assert "rosenbrock, 30 steps" in out
    last = expected["adam"]
    row = f"│ adam      │          0.05 │ ({last.points[-1, 0]:.3g}, "
    assert row in out
    assert f"│ {last.losses[-1]:.4g} │" in out
    assert out.count("never") == 2
    assert "lost" not in out
    assert f"run: {folder}\n" in out
    check_animation(folder / "trace.gif")


def check_animation(file):
    """Check that the lines of two paths, in their colours, grow over three frames."""
    with Image.open(file) as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
        frames = []
        for number in range(3):
            animation.seek(number)
            frames.append(np.array(animation.convert("RGB"), float) / 255)
    for colour in COLOURS[:2]:
        expected = np.array(ImageColor.getrgb(colour)) / 255
        apart = [np.abs(frame - expected).max(axis=-1) for frame in frames]
        first, _, last = ((distance < 0.15).sum() for distance in apart)
        assert 0 < first < last  # the legend has it from the start


def test_a_run_can_be_repeated(trace, runs_dir):
    options = ("--settings.adam.b1=0.5", "--start=[0, 1]", "--animation=none")
    assert trace(*options) == 0
    stored = runs_dir / "rosenbrock" / "config.toml"
    assert main(["trace", f"--config={stored}"]) == 0
    first, again = (runs_dir / name for name in ("rosenbrock", "rosenbrock-2"))
    assert {path.name for path in again.iterdir()} == FILES
    for name in ("config.toml", "trace.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    path = json.loads((again / "trace.json").read_text())["paths"]["adam"]
    assert path["points"][0] == [0, 1]
    assert path["settings"]["b1"] == 0.5


SETTINGS = {
    "two of one table": (["adam.b1=0.5", "adam.b2=0.3"], {"b1": 0.5, "b2": 0.3}),
    "two words each": (["adam.b1", "0.5", "adam.b2", "0.3"], {"b1": 0.5, "b2": 0.3}),
    "across another table": (
        ["adam.b1=0.5", "sgd.momentum=0.1", "adam.b2=0.3"],
        {"b1": 0.5, "b2": 0.3},
    ),
    "one twice": (["adam.b1=0.5", "adam.b1=0.6"], {"b1": 0.6}),
    "a table": (['adam={"b1": 0.5}', "adam.b2=0.3"], {"b1": 0.5, "b2": 0.3}),
    "over a file": (["FILE", "adam.b1=0.5"], {"b1": 0.5, "eps": 0.001}),
    "before a file": (["adam.b1=0.5", "FILE"], {"b1": 0.5, "eps": 0.001}),
    "a table over a file": (
        ["FILE", 'adam={"b2": 0.3}'],
        {"b1": 0.1, "eps": 0.001, "b2": 0.3},
    ),
    "two files": (["FILE", "FILE2"], {"b1": 0.2, "eps": 0.001, "b2": 0.4}),
}


@pytest.mark.parametrize(("given", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_all_settings_that_are_given_are_kept(given, expected, tmp_path):
    files = {"FILE": tmp_path / "one.toml", "FILE2": tmp_path / "two.toml"}
    files["FILE"].write_text("[settings.adam]\nb1 = 0.1\neps = 0.001")
    files["FILE2"].write_text("[settings.adam]\nb1 = 0.2\nb2 = 0.4")
    given = [f"--config={files[x]}" if x in files else x for x in given]
    options = [f"--settings.{x}" if x[0].islower() else x for x in given]
    settings = read_options(["trace", "--settings.lion.b1=0.7", *options]).settings
    assert settings["adam"] == expected
    assert settings["lion"] == {"b1": 0.7}
    assert ("sgd" in settings) == ("sgd.momentum=0.1" in given)


def test_a_path_that_diverges_is_said_and_drawn(trace, runs_dir, capfd):
    assert trace("--settings.sgd.learning_rate=0.1", "--name=mine") == 0
    out = capfd.readouterr().out
    paths = json.loads((runs_dir / "mine" / "trace.json").read_text())["paths"]
    step = paths["sgd"]["diverged"]
    assert f"diverged at step {step} " in out
    assert paths["adam"]["diverged"] is None
    assert len(paths["sgd"]["points"]) == len(paths["sgd"]["losses"]) == step
    # In float64 the next loss is finite, but too large for float32.
    x, y = paths["sgd"]["points"][-1]
    x, y = x - 0.1 * (2 * (x - 1) - 400 * x * (y - x * x)), y - 20 * (y - x * x)
    assert (1 - x) ** 2 + 100 * (y - x * x) ** 2 > float(np.finfo(np.float32).max)
    assert (runs_dir / "mine" / "trace.gif").exists()


def test_the_picture_shows_the_paths():
    traces = walk(optimizers=("sgd", "adam"), steps=30)
    picture = draw_traces("mine", SURFACES["rosenbrock"], traces)
    title, (paths, loss, distance), legend = read_picture(picture)
    assert title == "mine"
    assert paths.title == "Paths, on contours of the loss (log scale)"
    assert loss.title == "Loss above the lowest"
    assert distance.title == "Distance to the nearest minimum"
    scales = [paths.axis(x)["scale"]["domain"] for x in ("x", "y")]
    assert [tuple(ends) for ends in scales] == [*SURFACES["rosenbrock"].bounds]
    assert paths.all("image")[0]["mark"]["url"].startswith("data:image/png;base64,")
    across, up = paths.lines("x"), paths.lines("y")
    assert (across["minimum"], up["minimum"]) == ([1], [1])
    assert (across["start"], up["start"]) == ([-1.2], [1])
    assert legend == ["sgd (0.001)", "adam (0.05)", "start", "minimum"]
    for label, trace in zip(legend, traces.values(), strict=False):
        drawn = np.transpose([across[label], up[label]])
        np.testing.assert_array_equal(drawn, trace.points)
        np.testing.assert_array_equal(loss.lines()[label], trace.losses)
        np.testing.assert_array_equal(distance.lines()[label], trace.distances)
    assert distance.lines()["near"] == [NEAR, NEAR]
    types = [panel.axis("y")["scale"]["type"] for panel in (loss, distance)]
    assert types == ["log", "log"]
    assert to_picture(picture)


def test_rates_are_told_apart():
    rates = {"sgd": 0.99999999, "adam": 1.0}
    settings = {name: {"learning_rate": rate} for name, rate in rates.items()}
    traces = walk(optimizers=("sgd", "adam"), steps=3, settings=settings)
    picture = draw_traces("", SURFACES["rosenbrock"], traces)
    assert read_picture(picture)[2][:2] == ["sgd (0.99999999)", "adam (1)"]


def test_the_picture_of_the_counterexample_shows_x_and_regret(counterexample):
    traces = counterexample["counterexample"]
    picture = draw_traces("", SURFACES["counterexample"], traces)
    _, x, regret = read_panels(picture)
    assert x.title == "x: the best is -1, the worst 1"
    assert regret.title == "Average regret: loss above the minimum's, so far"
    adam = traces["adam"]
    label = list(x.lines())[1]
    np.testing.assert_array_equal(x.lines()[label], adam.points[:, 0])
    np.testing.assert_array_equal(regret.lines()[label], adam.regrets)


def test_a_start_at_the_minimum_is_drawn():
    traces = walk(optimizers=("sgd",), steps=3, start=(1.0, 1.0))
    assert traces["sgd"].reached == 0
    assert to_picture(draw_traces("", SURFACES["rosenbrock"], traces))


def test_the_first_steps_are_shown_closer():
    assert choose_steps(100, 5) == [0, 6, 25, 56, 100]
    assert choose_steps(2, 100) == [0, 1, 2]


@pytest.mark.parametrize("frame", [1, 2])
def test_ctrl_c_saves_all_but_the_animation(frame, trace, runs_dir, capfd, monkeypatch):
    reach = Display.reach

    def interrupt(self, number):
        reach(self, number)
        if number == frame:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "reach", interrupt)
    assert trace() == 130
    out, err = capfd.readouterr()
    assert err == "adam-jax: error: interrupted\n"
    assert "rosenbrock, 30 steps" in out
    assert {path.name for path in (runs_dir / "rosenbrock").iterdir()} == FILES


def test_ctrl_c_before_the_animation(trace, runs_dir, capfd, monkeypatch):
    def interrupt(steps, frames):
        os.kill(os.getpid(), signal.SIGINT)
        return choose_steps(steps, frames)

    monkeypatch.setattr(tracing, "choose_steps", interrupt)
    assert trace("--animation=none") == 130
    assert capfd.readouterr().err == "adam-jax: error: interrupted\n"
    assert {path.name for path in (runs_dir / "rosenbrock").iterdir()} == FILES


def test_brackets_in_a_name_are_shown(trace, runs_dir, capfd):
    settings = '--settings={"[/x]": {"name": "sgd"}}'
    options = ('--optimizers=["[/x]"]', settings, "--animation=none")
    assert trace(*options, f"--runs_dir={runs_dir / '[/y]'}") == 0
    out = capfd.readouterr().out
    assert "│ [/x] " in out
    assert f"run: {runs_dir / '[/y]' / 'rosenbrock'}\n" in out


def test_a_terminal_gets_a_bar(trace, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert trace() == 0
    out = capfd.readouterr().out
    assert "━" in out
    assert "3/3" in out
    assert "animation: frame" not in out


@pytest.mark.parametrize(("option", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(option, message, runs_dir, capfd):
    assert main(["trace", f"--runs_dir={runs_dir}", option]) == 2
    only_error(capfd, message)
    assert not runs_dir.exists()


def only_error(capfd, message):
    """Check that nothing but one line is printed."""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("adam-jax: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_the_counterexample_starts_where_it_is_allowed(runs_dir, capfd):
    options = (f"--runs_dir={runs_dir}", "--surface=counterexample")
    assert main(["trace", *options, "--start=[0, 1.1]"]) == 2
    only_error(capfd, r"start is \[0.0, 1.1\], but must be two numbers from -1 to 1")


def test_a_film_needs_ffmpeg(runs_dir, capfd, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["trace", f"--runs_dir={runs_dir}", "--animation=mp4"]) == 2
    only_error(
        capfd, r"'mp4', but must be 'gif' or 'none' where ffmpeg is not installed"
    )
    assert not runs_dir.exists()


@pytest.mark.parametrize("code", [0, 1])
def test_ffmpeg_makes_the_film_of_all_frames(
    code, trace, runs_dir, tmp_path, capfd, monkeypatch
):
    script = tmp_path / "ffmpeg"  # which leaves what it is given, as it is
    script.write_text(f'#!/bin/sh\nfor file; do :; done\ncat > "$file"\nexit {code}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert trace("--animation=mp4") == 2 * code
    film = runs_dir / "rosenbrock" / "trace.mp4"
    if code:
        assert "trace.mp4: ffmpeg has failed" in capfd.readouterr().err
        assert not film.exists()
    else:
        check_animation(film)


def test_an_unwritable_folder(tmp_path, capfd):
    (tmp_path / "file").touch()
    assert main(["trace", *TINY, f"--runs_dir={tmp_path / 'file'}"]) == 2
    only_error(capfd, r"cannot write the results: .*exists: '.*file'")


def test_help_has_an_example_and_every_option_and_surface(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["trace", "--help"])
    text = " ".join(capfd.readouterr().out.split())
    assert "adam-jax trace --surface rosenbrock" in text
    assert all(f" {name} {x.about.split()[0]}" in text for name, x in SURFACES.items())
    for field in dataclasses.fields(TraceConfig):
        assert re.search(rf"--{field.name} \S+ [A-Z]\w* ", text), field.name
