"""The models and the data that they learn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adam_jax.experiments.problems.data import (
    Dataset,
    Examples,
    split_classes,
    split_topics,
)
from adam_jax.experiments.problems.models import build_model

KEY = jax.random.key(0)
IMAGES = Dataset(*2 * [Examples(jnp.zeros((1, 8, 8)), jnp.full(1, 9))])
TEXT = Dataset(*2 * [Examples(jnp.zeros((1, 6), jnp.int32), jnp.full((1, 6), 9))])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("widths", [(), (4,), (4, 3, 2, 2, 2)])
def test_models_map_images_to_logits(name, widths):
    model = build_model(name, IMAGES, KEY, widths=widths)
    assert model(jnp.ones((5, 8, 8))).shape == (5, 10)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_hidden_layers_start_with_the_bias_of_the_config(name):
    model = build_model(name, IMAGES, KEY, widths=(4, 3), hidden_bias=-2.5)
    state = nnx.to_pure_dict(nnx.state(model))
    biases = [layer["bias"] for layer in state["layers"].values()]
    assert [set(np.unique(bias)) for bias in biases] == [{-2.5}, {-2.5}, {0}]


def test_parameters_come_from_the_seed():
    def kernel(seed):
        model = build_model("mlp", IMAGES, jax.random.key(seed), widths=(4,))
        return jax.tree.leaves(nnx.state(model))[1]

    assert np.array_equal(kernel(0), kernel(0))
    assert not np.array_equal(kernel(0), kernel(1))


def test_digits_are_split_once_and_for_all():
    train, test = split_classes("digits", 0.2)
    assert train.inputs.shape == (1437, 8, 8)
    assert test.inputs.shape == (360, 8, 8)
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1
    # Every class has its share of the test: about a tenth of 360.
    assert np.all(np.abs(np.bincount(test.labels) - 36) <= 1)
    seen = {image.tobytes() for image in np.asarray(train.inputs)}
    assert not any(image.tobytes() in seen for image in np.asarray(test.inputs))
    assert np.array_equal(test.inputs, split_classes("digits", 0.2).test.inputs)


def test_the_transformer_sees_the_past_only():
    model = build_model("transformer", TEXT, KEY, widths=(8, 8), heads=2)
    logits = model(jnp.arange(6)[None])
    assert logits.shape == (1, 6, 10)
    changed = model(jnp.arange(6)[None].at[0, 4].set(0))
    assert np.array_equal(logits[0, :4], changed[0, :4])
    assert not np.array_equal(logits[0, 4], changed[0, 4])


def test_parameters_of_every_model_may_be_bfloat16():
    options = {"widths": (8,), "heads": 2, "param_dtype": "bfloat16"}
    for name, data in [("mlp", IMAGES), ("cnn", IMAGES), ("transformer", TEXT)]:
        model = build_model(name, data, KEY, **options)
        for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
            assert leaf.dtype == jnp.bfloat16
        assert model(data.train.inputs).dtype == jnp.float32


def test_topics_are_windows_of_one_text():
    train, test = split_topics(0.1, context=64)
    assert train.inputs.shape[1] == 64 and len(test.inputs) > 500
    # The label of each character is the next one, also across windows.
    flat, labels = train.inputs.reshape(-1), train.labels.reshape(-1)
    assert np.array_equal(flat[1:], labels[:-1])
    # A character that only the test has is counted too.
    rare = split_topics(0.9, context=64)
    assert (
        rare.classes
        == split_topics(0.1, context=64).classes
        > int(rare.train.labels.max())
    )
    with pytest.raises(ValueError, match="context is 10000000, but training and test"):
        split_topics(0.1, context=10_000_000)
