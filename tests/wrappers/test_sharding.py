"""`shard_state`, beside the optimizer that it wraps, whose state is on every device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import eight_bit, shard_state, state_shardings

SPECS = {"w": P(None, "model"), "rows": P("model"), "b": P()}
SHAPES = {"w": (16, 64), "rows": (8, 32), "b": (3,)}
EIGHT = eight_bit(block=8, min_size=16)
MAKERS = {
    "float32": lambda: adam_jax.adamw(1e-2),
    "bfloat16": lambda: adam_jax.adamw(1e-2, mu_dtype="bfloat16", nu_dtype="bfloat16"),
    "8bit": lambda: adam_jax.adamw(1e-2, mu_dtype=EIGHT, nu_dtype=EIGHT),
    "factored": lambda: adam_jax.adamw(1e-2, nu_dtype=adam_jax.factored(min_size=4)),
    "amsgrad": lambda: adam_jax.amsgrad(1e-2),
    "sgd": lambda: optax.sgd(1e-2, 0.9),
    "clipped and watched": lambda: adam_jax.record(
        adam_jax.skip_nonfinite(
            optax.chain(optax.clip_by_global_norm(1.0), adam_jax.adamw(1e-2))
        ),
        ["update_norm"],
    ),
}
KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


def place(mesh):
    rng = np.random.default_rng(0)
    return {
        name: jax.device_put(
            jnp.asarray(rng.normal(size=shape), jnp.float32),
            NamedSharding(mesh, SPECS[name]),
        )
        for name, shape in SHAPES.items()
    }


def mesh_of(kind):
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    return Mesh(devices, ("data", "model"), axis_types=(KINDS[kind],) * 2)


def step(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def bytes_of_a_device(state):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


OFTEN = ("8bit", "clipped and watched")
CASES = [
    pytest.param(name, kind, marks=() if name in OFTEN else pytest.mark.crossing)
    for name in MAKERS
    for kind in KINDS
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_steps_are_those_of_the_optimizer_and_moments_are_halved(name, kind):
    mesh, inner = mesh_of(kind), MAKERS[name]()
    params = place(mesh)
    tx = shard_state(inner, params, over="data")
    with jax.set_mesh(mesh):
        state, expected = jax.jit(tx.init)(params), jax.jit(inner.init)(params)
        shardings = state_shardings(inner, params, over="data")
        for x, where in zip(
            jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
        ):
            assert x.sharding.is_equivalent_to(where, x.ndim)
        assert bytes_of_a_device(state) < 0.6 * bytes_of_a_device(expected)
        moved, landed = params, params
        take = jax.jit(functools.partial(step, tx))
        expect = jax.jit(functools.partial(step, inner))
        for _ in range(3):
            moved, state = take(moved, state, moved)
            landed, expected = expect(landed, expected, landed)
    for name, x in moved.items():
        assert x.sharding.is_equivalent_to(params[name].sharding, x.ndim)
    for x, y in zip(
        jax.tree.leaves((moved, state)),
        jax.tree.leaves((landed, expected)),
        strict=True,
    ):
        if x.dtype in ("int8", "uint8", "bfloat16"):  # the last place
            assert (np.asarray(x) != np.asarray(y)).mean() < 0.02
        else:
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_a_transformer_has_the_same_losses():
    """Of Flax NNX, data parallel over four devices."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(16, 8, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.head = nnx.Linear(8, 16, rngs=rngs)

        def __call__(self, tokens):
            x = self.embed(tokens)
            mask = nnx.make_causal_mask(tokens)
            return self.head(x + self.attend(x, mask=mask))

    def train(wrap):
        model = Block(nnx.Rngs(0))
        graph, params = nnx.split(model)
        everywhere = NamedSharding(mesh, P())
        params = jax.device_put(params, everywhere)
        tx = wrap(adam_jax.adamw(1e-2), params)
        state = jax.jit(tx.init)(params)
        tokens = np.random.default_rng(1).integers(0, 16, (8, 12))
        tokens = jax.device_put(tokens, NamedSharding(mesh, P("data")))

        @jax.jit
        def take(params, state):
            def loss_of(params):
                logits = nnx.merge(graph, params)(tokens[:, :-1])
                losses = optax.softmax_cross_entropy_with_integer_labels(
                    logits, tokens[:, 1:]
                )
                return losses.mean()

            loss, grads = jax.value_and_grad(loss_of)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        losses = []
        for _ in range(5):
            params, state, loss = take(params, state)
            losses.append(float(loss))
        return losses, state

    whole, expected = train(lambda tx, _: tx)
    pieces, state = train(lambda tx, params: shard_state(tx, params, over="data"))
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)
    assert whole[-1] < whole[0]
    assert bytes_of_a_device(state) < 0.35 * bytes_of_a_device(expected)


def test_behind_masks_and_in_the_optimizer_of_nnx():
    mesh = mesh_of("automatic")
    params = place(mesh)
    pieces = shard_state(adam_jax.adamw(1e-2), params, over="data")
    for wrap in (
        lambda tx: optax.masked(tx, {"w": True, "rows": False, "b": True}),
        lambda tx: optax.multi_transform(
            {"x": tx, "y": optax.sgd(1e-2)}, {"w": "x", "rows": "y", "b": "x"}
        ),
    ):
        tx, plain = wrap(pieces), wrap(adam_jax.adamw(1e-2))
        state, expected = tx.init(params), plain.init(params)
        assert optax.tree.get(state, "mu")["w"].sharding.spec == P("data", "model")
        found = jax.jit(tx.update)(params, state, params)
        whole = jax.jit(plain.update)(params, expected, params)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, whole
        )
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    everywhere = NamedSharding(mesh, P())
    nnx.update(model, jax.device_put(nnx.state(model), everywhere))
    tx = shard_state(adam_jax.adamw(1e-2), nnx.state(model, nnx.Param), over="data")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    np.testing.assert_allclose(before - model.kernel[...], 0.01, rtol=0.02)


def test_what_has_no_place_on_a_mesh_is_refused():
    params = place(mesh_of("automatic"))
    tx = adam_jax.adam(1e-2)
    packed = adam_jax.packed(shard_state(tx, params, over="data"), max_size=4096)
    with pytest.raises(ValueError, match=r"put packed\(\) and .* inside"):
        packed.init(params)
    with pytest.raises(ValueError, match="a parameter 'w' of shape"):
        shard_state(tx, params, over="data").init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="over must be the name of an axis"):
        shard_state(tx, params, over=None)
    types = AxisType.Auto, AxisType.Explicit
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    with pytest.raises(ValueError, match="partly automatic and partly explicit"):
        mixed = place(Mesh(devices, ("data", "model"), axis_types=types))
        shard_state(tx, mixed, over="data")
    with pytest.raises(ValueError, match="no axis 'rows'"):
        shard_state(tx, params, over="rows")
    with pytest.raises(ValueError, match="has no NamedSharding"):
        shard_state(tx, {"w": jnp.ones(3)}, over="data")
    with pytest.raises(TypeError, match="shard_state"):
        shard_state(adam_jax.adam, params, over="data")
