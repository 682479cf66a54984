"""Pieces in a shard_map are stepped, bit for bit, as the whole leaves are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from pieces import (
    MAKERS,
    MESH,
    SHAPES,
    SMALL,
    SPECS,
    draw,
    run,
    same,
    specs_of,
    take,
    take_fused,
)

import adam_jax
from adam_jax import in_shard_map
from adam_jax.family.factored_moments import adafactor, came
from adam_jax.family.iterates import adam_hyperball, lookahead, schedule_free_adamw
from adam_jax.family.shared_moments import novograd
from adam_jax.family.step_sizes import prodigy, swats

FEW = {name: SPECS[name] for name in ("both", "columns", "replicated")}


def few(dtype="float32"):
    return draw(0, dtype, {name: SHAPES[name] for name in FEW})


crossing = functools.partial(pytest.param, marks=pytest.mark.crossing)


@pytest.mark.parametrize(
    ("name", "step", "check_vma"),
    [
        *((name, take, True) for name in MAKERS),
        ("8bit", take_fused, False),
        *(crossing(name, take_fused, False) for name in MAKERS if name != "8bit"),
    ],
)
def test_pieces_are_stepped_like_the_whole(name, step, check_vma):
    dtype = "bfloat16" if name == "round_to_params" else "float32"
    same(*run(MAKERS[name](), step, draw(0, dtype), check_vma=check_vma))


def test_without_it_pieces_draw_other_bits():
    """Or else the other tests would show nothing."""
    tx = MAKERS["bfloat16"]()
    own = SPECS, specs_of(tx, draw(0))
    step = jax.shard_map(
        functools.partial(take, tx), mesh=MESH, in_specs=(*own, SPECS), out_specs=own
    )
    state = tx.init(draw(0))
    _, found = jax.jit(step)(draw(0), state, draw(1))
    _, expected = jax.jit(tx.update)(draw(1), state, draw(0))
    for leaf, spec in SPECS.items():
        equal = np.array_equal(found[0].mu[leaf], expected[0].mu[leaf])
        assert equal == (not any(spec))


@pytest.mark.parametrize(
    ("named", "check_vma"), [(True, True), (False, True), (False, False)]
)
def test_guards_and_figures_are_those_of_the_whole(named, check_vma):
    """They need no names: how leaves are cut tells which devices hold pieces."""

    def make(**axes):
        tx = adam_jax.skip_spikes(MAKERS["bfloat16"](), warmup=1, **axes)
        return adam_jax.record(tx, ["gradient_norm", "update_ratio"], **axes)

    tx = make(axis_name=("data", "model")) if named else make()
    found, expected = run(tx, take, few(), FEW, check_vma=check_vma, reference=make())
    (params, found), (expected_params, expected) = found, expected
    same(params, expected_params)
    same(found.inner_state.inner_state, expected.inner_state.inner_state)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        one, other = (np.asarray(x, "float32") for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_nan_on_one_device_skips_on_all():
    tx = in_shard_map(adam_jax.skip_nonfinite(adam_jax.sgd(1.0)), FEW)
    state, params = tx.init(few()), few()
    specs = FEW, jax.tree.map(lambda _: P(), state)
    step = jax.shard_map(
        functools.partial(take, tx), mesh=MESH, in_specs=(*specs, FEW), out_specs=specs
    )
    bad = {**params, "both": params["both"].at[-1, -1].set(jnp.nan)}
    found, state = jax.jit(step)(params, state, bad)
    same(found, params)
    assert state.skipped == 1


WRAPPED = {
    "masked": lambda tx: optax.masked(tx, {k: k != "both" for k in FEW}),
    "multi_transform": lambda tx: optax.multi_transform(
        {"one": tx, "two": optax.sgd(0.5)},
        {k: "two" if k == "both" else "one" for k in FEW},
    ),
    "every other": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "in a chain": lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("tx", tx)),
}


@pytest.mark.parametrize(
    "name", ["masked", *(crossing(name) for name in WRAPPED if name != "masked")]
)
def test_other_wrappers_keep_the_numbers_of_leaves(name):
    same(*run(WRAPPED[name](MAKERS["bfloat16"]()), take, few(), FEW))


@pytest.mark.parametrize("step", [take, take_fused], ids=["update", "fused"])
def test_leaves_that_are_cut_share_no_buffer(step):
    """Others do: their bits are those of the buffer, here as on one device."""
    specs = {**FEW, "scale": P(), "shift": P()}
    params = {**few(), "scale": jnp.ones(5), "shift": jnp.ones(7)}
    tx = adam_jax.packed(MAKERS["bfloat16"](), max_size=700)
    pieces = in_shard_map(tx, specs)

    def start_and_step(params, grads):
        params, state = step(pieces, params, pieces.init(params), grads)
        return params, [*state.inner_state[0].mu.buffers.values()]

    cut = [FEW["both"], FEW["columns"], P()]
    found = jax.shard_map(
        start_and_step, mesh=MESH, in_specs=(specs, specs), out_specs=(specs, cut)
    )
    grads = {k: x - 0.3 for k, x in params.items()}
    found, buffers = jax.jit(found)(params, grads)
    expected, state = jax.jit(functools.partial(step, tx))(
        params, tx.init(params), grads
    )
    same(found, expected)
    same(buffers, [*state.inner_state[0].mu.buffers.values()])
    assert len(buffers[2]) == 8 * 64 + 5 + 7


@pytest.mark.parametrize(
    "format",
    [
        adam_jax.mean_over(),
        adam_jax.mean_over(-1),
        adam_jax.factored(4),
        adam_jax.axis_maxima(),
    ],
    ids=str,
)
@pytest.mark.parametrize("check_vma", [True, crossing(False)])
def test_means_are_those_of_the_whole(format, check_vma):
    """They are summed in another order."""
    specs = {**FEW, "thin": P("data"), "wide": P(None, "model")}
    shapes = {**{k: SHAPES[k] for k in FEW}, "thin": (2, 24), "wide": (128, 256)}
    tx = adam_jax.adam(0.125, nu_dtype=format)
    runs = run(tx, take, draw(0, shapes=shapes), specs, check_vma=check_vma)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), *runs)


WHOLE = {
    "adafactor": lambda: adafactor(0.1, min_dim_size_to_factor=4),
    "came": lambda: came(1e-3, min_dim_size_to_factor=4),
    "novograd": lambda: novograd(1e-2),
    "adam_hyperball": lambda: adam_hyperball(0.1),
    "swats": lambda: swats(1e-2, tolerance=1e9),
    "prodigy": lambda: prodigy(estim_lr0=1e-2),
    "lookahead": lambda: lookahead(1e-2, sync_period=2),
    "schedule_free_adamw": lambda: schedule_free_adamw(1e-2),
}


@pytest.mark.parametrize(
    ("name", "check_vma"),
    [
        ("adafactor", True),
        ("swats", False),
        *(crossing(name, check) for name in WHOLE for check in (True, False)),
    ],
)
def test_norms_and_products_are_those_of_the_whole(name, check_vma):
    specs = {**FEW, "flat": SPECS["flat"]}
    params = {**few(), **draw(0, shapes={"flat": SHAPES["flat"]})}
    found, expected = run(WHOLE[name](), take, params, specs, check_vma=check_vma)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def in_map(function, specs, *args, **options):
    mapped = jax.shard_map(
        function, mesh=MESH, in_specs=specs, out_specs=P(), **options
    )
    return jax.jit(mapped)(*args)


@pytest.mark.parametrize("check_vma", [True, False])
def test_init_inside_counts_the_whole_and_fits_blocks_to_pieces(check_vma):
    """64 elements of the whole are coded; pieces of 12 are blocks of 6."""
    params = {"w": jnp.ones((4, 24)), "v": jnp.ones((2, 24))}
    specs = {"w": P(None, "data"), "v": P(None, "data")}
    tx = adam_jax.adam(1e-3, nu_dtype=adam_jax.eight_bit(block=8, min_size=64))
    tx = in_shard_map(tx, specs)
    shapes = []
    in_map(
        lambda p: shapes.append(tx.init(p)[0].nu_format.exponents),
        (specs,),
        params,
        check_vma=check_vma,
    )
    assert shapes[0]["w"].shape == (4, 2)
    assert shapes[0]["v"] == optax.MaskedNode()


def test_pieces_that_are_no_whole_blocks_are_refused():
    """102 elements are blocks of 26, 26, 26 and 24: half of them is no two blocks."""
    params, specs = {"w": jnp.ones((64, 102))}, {"w": P(None, "data")}
    tx = adam_jax.adam(1e-3, nu_dtype="8bit")
    message = "were stored in blocks of 26, but .* in pieces of 51: .*block=17"
    with pytest.raises(ValueError, match=message):
        run(tx, take, params, specs, steps=1)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("step", [take, take_fused], ids=["update", "fused"])
def test_pieces_whose_length_the_blocks_of_the_whole_divide_are_refused(
    step, check_vma
):
    """48 elements are 6 blocks of 8. Two would fit into half a piece of 12 as well."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    params, specs = {"w": jnp.ones((2, 48))}, {"w": P(None, "data")}
    tx = adam_jax.adam(1e-3, nu_dtype=adam_jax.eight_bit(block=8, min_size=0))
    own = specs, jax.tree.map(lambda _: P(), tx.init(params))
    own[1][0].mu["w"] = own[1][0].nu["w"] = specs["w"]
    pieces = jax.shard_map(
        functools.partial(step, in_shard_map(tx, specs)),
        mesh=mesh,
        in_specs=(*own, specs),
        out_specs=own,
        check_vma=check_vma,
    )
    message = "were stored in blocks of 8, but .* in pieces of 12: .*block=6"
    with pytest.raises(ValueError, match=message):
        jax.jit(pieces)(params, tx.init(params), params)


@pytest.mark.parametrize("check_vma", [True, False])
def test_states_made_inside_are_stepped_inside(check_vma):
    params, specs = {"w": jnp.ones((2, 48))}, {"w": P(None, "data")}
    tx = in_shard_map(adam_jax.adam(0.5, mu_dtype=SMALL, nu_dtype=SMALL), specs)

    def start_and_step(params):
        return take(tx, params, tx.init(params), params)[0]

    found = jax.jit(
        jax.shard_map(
            start_and_step,
            mesh=MESH,
            in_specs=(specs,),
            out_specs=specs,
            check_vma=check_vma,
        )
    )(params)
    np.testing.assert_allclose(found["w"], 0.5, rtol=1e-2)


WRONG = {
    "a leaf is missing": (
        {"w": P("data")},
        r"no spec for params\['b'\]: give the in_specs of all parameters",
    ),
    "too many axes": (
        {"w": P("data", None, "model"), "b": P()},
        r"P.*for params\['w'\], which has only 2 axes",
    ),
    "no such axis": (
        {"w": P("rows"), "b": P()},
        r"params\['w'\] is cut along 'rows', but the shard_map maps over 'data'",
    ),
    "not cut along it": (
        {"w": P("data", "model"), "b": P()},
        r"params\['w'\] is cut along 'model', but it is the same on all devices",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specs_are_refused(name):
    specs, message = WRONG[name]
    params = {"w": jnp.ones((4, 8)), "b": jnp.ones(3)}
    tx = in_shard_map(adam_jax.adam(1e-3, mu_dtype="bfloat16"), specs)
    given = {"w": P("data"), "b": P()}
    state = adam_jax.adam(1e-3, mu_dtype="bfloat16").init(params)
    for function in (lambda p: tx.update(p, state)[0], lambda p: tx.init(p)[0].mu):
        with pytest.raises(ValueError, match=message):
            in_map(function, (given,), params, check_vma=True)


def test_what_are_no_specs_is_refused():
    with pytest.raises(TypeError, match=r"takes the PartitionSpecs .* got 'data' at"):
        in_shard_map(adam_jax.sgd(1.0), {"w": "data"})


def test_outside_of_a_shard_map_there_are_no_pieces():
    params = few()
    tx = in_shard_map(MAKERS["8bit"](), FEW)
    state = tx.init(params)
    same(state, MAKERS["8bit"]().init(params))
    with pytest.raises(ValueError, match=r"outside of a jax.shard_map: call it inside"):
        tx.update(params, state, params)


def test_a_tree_of_other_leaves_is_refused():
    """optax.flatten() makes one leaf of all: of which there are no specs."""
    tx = in_shard_map(optax.flatten(MAKERS["bfloat16"]()), FEW)
    with pytest.raises(ValueError, match=r"not told of a leaf '': .* optax.flatten"):
        in_map(lambda p: tx.init(p)[0], (FEW,), few())
