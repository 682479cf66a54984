"""The benchmark: that it measures steps of Adam, what it writes, what it refuses."""

import json
import math
import os
import re
import signal
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from adam_jax.experiments.bench import (
    candidates,
    compiled,
    plan,
    sizes,
    steppers,
    timing,
)
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS, WRAPPERS
from adam_jax.experiments.bench.plan import make_plan, why_missing
from adam_jax.experiments.bench.sizes import Problem, parse_size
from adam_jax.experiments.bench.steppers import draw_grads
from adam_jax.experiments.cli import main
from adam_jax.experiments.machine import PACKAGES
from adam_jax.experiments.running.progress import Display
from adam_jax.experiments.settings.options import BenchOptions
from adam_jax.native import library

BUILT = library.available()
PEERS = ("torch", "bitsandbytes", "rollfast")
NATIVE = ("bare_loop", "fused_step") if BUILT else ()
NAMES = ("adamw", "record_one_every_100", *NATIVE)
TINY = ("bench", "--sizes", "64", "4096", "3x2^5", "--repeats=2")
SIZE = ("size", "parameters", "leaves")
# 8-bit codes are for leaves of 4,096 elements or more.
SHAPES = ((2, 4096), (3, 5), (), (17,))
LARGEST_ERROR = {"float32": 1e-4, "8bit": 0.1, "pure_8bit": 0.1}  # others 0.02
MISTAKES = {
    "a size": ("--sizes=2^x", r"size '2\^x' is unknown: give a number of parameters"),
    "no parameters": ("--sizes=0", r"size '0' is unknown"),
    "a format": (
        "--formats=4bit",
        r"format is '4bit', but must be .* bench --help: did you mean 8bit\?$",
    ),
    "a candidate": (
        "--candidates=adam",
        r"candidate is 'adam', .* bench --help: did you mean adamw\?$",
    ),
    "a base": (
        "--base=zzz",
        r"base is 'zzz', but must be one of those in adam-jax bench --h",
    ),
    "one pair": ("--repeats=1", r"repeats is 1, but must be 2 or more"),
    "a word": ("--repeats=x", r"repeats: .* a valid integer, got \"x\"$"),
    "a machine": (
        "--compiled=v4",
        r"compiled is 'v4', but must be one of v5e, v5p, v6e, h100, perhaps",
    ),
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
    if why := why_missing(candidate):
        pytest.skip(why)
    grads = draw_grads(Problem("test", SHAPES), FORMATS[format].dtype)
    stepper = candidate.make(FORMATS[format], grads)
    stepper.run(1)
    stepper.run(4)
    expected = expected_params(grads, 5, inside=name.endswith("_grads"))
    for found, exact in zip(stepper.params(), expected, strict=True):
        assert found.shape == exact.shape
        error = np.abs(found - exact).mean() / 5e-3  # of the way that it went
        assert error < LARGEST_ERROR.get(format, 0.02)
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
    with Image.open(files["png"]) as picture:
        image = np.asarray(picture.convert("RGB")) / 255
    height, width = (size // 2 for size in image.shape[:2])
    for quarter in (image[:height, :width], image[height:, width:]):
        assert quarter.std() > 0.05


def test_ctrl_c_saves_what_is_measured(tmp_path, capfd, monkeypatch):
    def interrupt(self, line):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "note", interrupt)
    paths = [tmp_path / "bench.json", tmp_path / "bench.png"]
    options = [f"--{k}={v}" for k, v in zip(("json", "picture"), paths, strict=True)]
    assert main([*TINY, "--candidates=optax", *options]) == 130
    out, err = capfd.readouterr()
    assert err == "adam-jax: error: interrupted\n"
    assert "64: 64 parameters" in out
    assert len(json.loads(paths[0].read_text())["rows"]) == 1
    assert paths[1].stat().st_size > 0


def test_quick_measures_everything_but_wrappers(capfd):
    plan = make_plan(BenchOptions(quick=True))
    names = {cell.candidate for cell in plan.cells}
    assert names == set(CANDIDATES) - set(WRAPPERS) - set(plan.missing)
    assert plan.repeats < make_plan(BenchOptions()).repeats


def test_wrappers_are_measured_at_two_sizes_or_where_asked():
    def sizes(**options):
        cells = make_plan(BenchOptions(**options)).cells
        return {c.problem.name for c in cells if c.candidate == "record_all"}

    assert sizes() == {"2^24", "150x2^17"}
    assert sizes(sizes=["64"]) == {"64"}


def test_another_base(capfd):
    options = ("--candidates", "optax", "--base", "adamw", "--formats", "float32")
    assert main(["bench", "--sizes", "64", "--repeats=2", *options]) == 0
    assert " x adamw" in capfd.readouterr().out


def test_what_does_not_fit_into_memory_is_left_out(tmp_path, capfd, monkeypatch):
    memory = sizes.psutil.virtual_memory()._replace(available=100 * 60)
    monkeypatch.setattr(sizes.psutil, "virtual_memory", lambda: memory)
    path = tmp_path / "bench.json"
    command = ["bench", "--sizes", "2^20", "64", "--candidates", "optax", "--repeats=2"]
    assert main([*command, "--formats=float32", f"--json={path}"]) == 0
    sentence = r"without 2\^20: it needs about 0.1 GB of memory, and 0.0 are free"
    assert re.search(sentence, capfd.readouterr().out)
    found = json.loads(path.read_text())
    assert [row["size"] for row in found["rows"]] == ["64"]
    assert "2^20" in found["skipped"]
    assert main(["bench", "--sizes=2^20", f"--json={path}"]) == 0
    assert json.loads(path.read_text())["rows"] == []


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
    assert make_plan(BenchOptions()).missing["torch"] == "torch is not installed"


@pytest.fixture
def only_peers(monkeypatch):
    """Leave only Optax and others' packages, none of which is installed."""
    few = {name: CANDIDATES[name] for name in ("optax", *PEERS)}
    monkeypatch.setattr(plan, "CANDIDATES", few)
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "rollfast", None)


def test_peers_that_are_missing_are_listed_with_what_installs_them(only_peers, capfd):
    assert main(["bench", "--sizes=64", "--repeats=2"]) == 0
    out = capfd.readouterr().out
    for name in PEERS:
        assert re.search(rf"without {name}: to measure it, run .*{name}", out)


def test_a_peer_is_measured_where_it_is_installed(only_peers, capfd, monkeypatch):
    peer = types.ModuleType("rollfast")
    monkeypatch.setitem(sys.modules, "rollfast", peer)
    assert "rollfast" in make_plan(BenchOptions()).missing  # an old one has no 8 bits
    peer.adamw8 = optax.adamw
    assert main(["bench", "--sizes=64", "--repeats=2", "--formats=8bit"]) == 0
    out = capfd.readouterr().out
    assert "64 rollfast, 8bit: " in out and "without rollfast" not in out


def test_no_candidate_is_left(capfd):
    assert main(["bench", "--candidates=optax", "--formats=8bit"]) == 2
    assert "no candidate that is left knows 8bit" in capfd.readouterr().err


def test_help_has_an_example_and_every_candidate(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    out = capfd.readouterr().out
    assert "adam-jax bench --json bench.json --picture bench.png" in out
    assert all(f"  {name} " in out for name in CANDIDATES)
    options = " ".join(out.partition("candidates:")[0].split())
    assert f"By default {' '.join(plan.SIZES)}, if compiled 16384,8192." in options
    assert f": {', '.join(FORMATS)}. By default the first 5" in options
    assert len(plan.TIMED_FORMATS) == 5 and plan.REPEATS == 25
    assert f"if compiled {', '.join(plan.COMPILED)}." in options
    assert f"compile for {', '.join(compiled.CHIPS)}, none" in options


def test_sizes():
    assert parse_size("2^12") == Problem("2^12", ((4096,),))
    assert parse_size("300x4096").shapes == ((4096,),) * 300
    assert parse_size("2x3^2").parameters == 18
    assert parse_size("3,2^4,5").shapes == ((3, 16, 5),)
    assert parse_size("12x64,2^2").shapes == ((64, 4),) * 12
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


@pytest.mark.parametrize(
    ("machine", "command"),
    [
        ("v5e", "libtpu==0.0.52"),
        ("v6e:4x4", "libtpu==0.0.52"),
        ("h100", "jax-cuda12-plugin=={0} jax-cuda12-pjrt=={0}"),
    ],
)
def test_what_compiles_for_a_machine_is_named_if_missing(
    machine, command, capfd, monkeypatch
):
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", f"--compiled={machine}", "--candidates=adamw"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    command = f"pip install --no-deps {command.format(jax.__version__)}"
    kind = machine.split(":")[0]
    assert err == f"adam-jax: error: to compile for {kind}, run {command}\n"


@pytest.mark.parametrize("option", ["--candidates=torch", "--base=bare_loop"])
def test_what_jax_does_not_compile_is_refused_by_name(option, capfd):
    assert main(["bench", "--compiled=v5e", option]) == 2
    sentence = f"{option.split('=')[1]} cannot be measured here: JAX does not compile"
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--repeats=3", "--picture=x.png"])
def test_what_is_compiled_is_not_run(option, capfd):
    assert main(["bench", "--compiled=v5e", option]) == 2
    assert "leave out repeats and picture" in capfd.readouterr().err


@pytest.mark.parametrize("chips", [1, 8])
def test_counts_of_a_compiled_step(chips, tmp_path, capfd, monkeypatch):
    """On CPU, for which JAX compiles everywhere."""
    devices = jax.devices()[:chips]
    monkeypatch.setattr(plan, "find_devices", lambda machine: devices)
    broken = CANDIDATES["packed"]._replace(make_tx=lambda format: 1 // 0)
    monkeypatch.setitem(CANDIDATES, "packed", broken)
    path = tmp_path / "compiled.json"
    options = ("--formats=float32", "--candidates", "optax", "packed", "skip_nonfinite")
    command = ["bench", "--compiled=v5e", "--sizes", "256,256", "2x64,64"]
    assert main([*command, *options, f"--json={path}"]) == 0
    found = json.loads(path.read_text())
    assert set(found["skipped"]) == {
        f"{x} packed, float32" for x in ("256,256", "2x64,64")
    }
    assert [row["candidate"] for row in found["rows"]] == [
        "optax",
        "skip_nonfinite",
    ] * 2
    for row in found["rows"]:
        assert row["compiled_for"] == "v5e"
        assert row["base"] == "optax"
        moved = row["moved_bytes_per_parameter"]
        if row["candidate"] == "optax":
            assert moved == row["base_moved_bytes_per_parameter"]
        assert moved >= 28  # parameters, both moments, gradients
        assert row["not_in_place_bytes_per_parameter"] < 1  # scalars
        assert row["temporary_bytes_per_parameter"] >= 0
        assert row["compile_seconds"] > 0
        assert not row["collectives"] or row["candidate"] == "skip_nonfinite"
    out = capfd.readouterr().out
    assert "256,256: 65,536 parameters, for v5e" in out
    assert "as compiled, not run" in out
    assert "without 2x64,64 packed, float32: it does not compile: integer" in out
    assert "…" not in out


@pytest.mark.parametrize(("donated", "not_in_place"), [((0,), 0), ((), 4)])
def test_bytes_of_a_program_on_cpu(donated, not_in_place):
    array = jax.ShapeDtypeStruct((1000,), jnp.float32)
    jitted = jax.jit(lambda x, y: x - y, donate_argnums=donated)
    cost = compiled.read_cost(jitted.lower(array, array).compile())
    assert (cost.moved, cost.not_in_place) == (12_000, 1000 * not_in_place)
    assert (cost.temporary, cost.branches, cost.collectives) == (0, 0, {})


def test_bytes_of_a_program_for_a_tpu():
    text = """HloModule jit_step, is_scheduled=true

%fused (a: f32[8]) -> f32[8] {
  ROOT %inner = f32[8]{0} add(%a, %a)
}

ENTRY %main.3 (a: f32[1000,8], b: bf16[100]) -> (f32[1000,8], bf16[100]) {
  %a = f32[1000,8]{1,0:T(8,128)} parameter(0), metadata={op_name="a"}
  %b = bf16[100]{0:T(256)(128)(2,1)} parameter(1)
  %flags = pred[10]{0} constant({...})
  %copy-start = (bf16[100]{0:T(256)S(1)}, bf16[100]{0:T(256)}, u32[]{:S(2)}) \
copy-start(bf16[100]{0:T(256)(128)(2,1)} %b)
  %copy-done = bf16[100]{0:T(256)S(1)} copy-done(%copy-start)
  %code = s8[16]{0} custom-call(%flags), custom_call_target="kernel"
  %cast = f32[1000,8]{1,0} custom-call(%a), custom_call_target="ConcatBitcast"
  %sum = (f32[1000,8]{1,0}, /*index=1*/bf16[100]{0:S(1)}) fusion(%a, %copy-done), \
kind=kLoop, calls=%fused
  %first = f32[1000,8]{1,0} get-tuple-element(%sum), index=0
  %twice = f32[1000,8]{1,0} all-reduce(%first), to_apply=%fused
  ROOT %out = (f32[1000,8]{1,0}, bf16[100]{0}) tuple(%twice, %b)
}
""".replace("\\\n", "")
    moved, operations = compiled.count_traffic(text)
    copied, kernel, summed, reduced = 200, 10 + 16, 2 * 32_000, 2 * 32_000
    assert moved == copied + kernel + summed + reduced
    assert operations["fusion"] == operations["copy-start"] == 1
