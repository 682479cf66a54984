"""What `benchmarks/at_scale.py` counts, beside sums by hand."""

import pathlib
import sys

import jax
import pytest

from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.compiled import count_different
from adam_jax.experiments.bench.steppers import compile_step

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import at_scale
from at_scale import MODELS, find_need, leaf, run_case, tell, unstack

MATRIX = {"w": leaf(width=4096, wide=4096)}
SIZE = 4096 * 4096
# Bytes a parameter that a step moves, as tests/compiled asserts of most of them.
LEAST = {
    "float32": 28,
    "mu bfloat16": 24,
    "bfloat16": 20,
    "8bit": 16.125,
    "factored nu": 24,
    "compensate_params": 26,
    "round_to_params, bfloat16": 14,
    "round_to_params, 8bit": 10.125,
}


def test_leaves_are_counted_like_those_of_the_models():
    layered = {name: unstack(model, "layers") for name, model in MODELS.items()}
    counts = {name: len(model) for name, model in layered.items()}
    # Llama has 9 leaves in a layer, and 3 others.
    assert counts["7B"] == 32 * 9 + 3
    assert counts["70B"] == 80 * 9 + 3
    experts = unstack(layered["1T"], "experts")
    assert len(experts) - counts["1T"] == 60 * 3 * (384 - 1)
    assert experts["routed_up_0_383"].shape == (7168, 2048)


def test_7b_on_eight_chips():
    """Two for data, four for model: what is cut over one is whole over the other."""
    norms = 65 * 4096
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 32000 * 4096
    small = 4 * (4 + 3)  # weights of the moments, and counts
    for cut, held, state in (
        ("replicated", matrices + norms, matrices + norms),
        ("ZeRO-1", matrices // 4 + norms, matrices // 8 + norms // 2),
        ("FSDP", matrices // 8 + norms // 2, matrices // 8 + norms // 2),
    ):
        need = find_need(MODELS["7B"], 8, cut, "float32")
        assert need.params == 4 * held
        assert need.state == 2 * 4 * state + small
        assert need.held == 2 * need.params + need.state
        even = (16 * (matrices + norms) + small) / 8
        assert need.repeated == pytest.approx(need.held - even)


@pytest.mark.parametrize(
    ("candidate", "format"),
    [
        ("adamw", "float32"),
        ("adamw", "bfloat16"),
        ("adamw", "8bit"),
        ("adamw", "pure_bfloat16"),
        ("skip_spikes", "float32"),
        ("record_default", "float32"),
    ],
)
def test_leaves_of_one_shape_share_their_loops(candidate, format):
    """XLA compiles loops that are alike once, so more leaves add none.

    But one, in jax 0.8, which has no leaf of its own.
    """
    program = CANDIDATES[candidate].program(FORMATS[format])

    def count(leaves):
        params = [jax.ShapeDtypeStruct((32, 128), FORMATS[format].dtype)] * leaves
        state = jax.eval_shape(program.init, params)
        compiled, _ = compile_step(program, params, state, params)
        return count_different(compiled.as_text())

    assert count(7) <= count(4) + 1


@pytest.mark.parametrize("step", at_scale.STEPS)
def test_a_step_moves_what_is_asserted_of_its_program(step):
    for chips in (8, 64):
        moved = find_need(MATRIX, chips, "FSDP", step).moved
        # Exponents, and the means of a factored moment.
        assert moved / (SIZE / chips) == pytest.approx(LEAST[step], abs=0.06)


@pytest.mark.parametrize(
    ("cut", "step", "received"),
    [
        ("replicated", "float32", 2 * 4 * SIZE * 63 / 64),
        ("ZeRO-1", "float32", 2 * 4 * SIZE / 8 * 7 / 8),
        ("FSDP", "float32", 3 * 4 * SIZE / 8 * 7 / 8),
        # Its updates are float32.
        ("ZeRO-1", "round_to_params, 8bit", (2 + 4) * SIZE / 8 * 7 / 8),
        ("FSDP", "round_to_params, 8bit", 3 * 2 * SIZE / 8 * 7 / 8),
    ],
)
def test_what_a_device_receives(cut, step, received):
    assert find_need(MATRIX, 64, cut, step).received == received


def test_what_cannot_be_cut_is_counted_whole():
    odd = {"w": leaf(width=4095, wide=4097)}
    need = find_need(odd, 64, "ZeRO-1", "float32")
    assert need.params == 4 * 4095 * 4097
    assert need.state == 2 * need.params + 28
    assert need.received == 2 * need.params * 7 / 8


def test_a_case_ends_at_its_limit():
    case = ("adamw", "float32", "2x32,128", None)
    assert run_case(*case, -1, True) == {}  # it took more to start
    assert [*run_case(*case, 120, True)] == ["trace", "compile", "step"]


def test_what_took_too_long_is_told():
    base = {"trace": 2.0, "compile": 4.0, "step": 0.001}
    told = [tell(found, base).split() for found in (base, {"trace": 3.0}, {})]
    assert told[0] == ["2.00", "1.0", "4.00", "1.0", "1.00", "1.0"]
    assert told[1] == ["3.00", "1.5", "ended"]
    assert told[2] == ["ended"]
    assert tell(base, {"trace": 2.0}).split() == ["2.00", "1.0", "4.00", "1.00"]
