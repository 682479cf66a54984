"""The models and the data that they learn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adam_jax.experiments.config import ModelConfig
from adam_jax.experiments.data import split_digits
from adam_jax.experiments.models import build_model


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("widths", [(), (4,), (4, 3, 2, 2, 2)])
def test_models_map_images_to_logits(name, widths):
    model = build_model(ModelConfig(name=name, widths=widths), seed=0)
    assert model(jnp.ones((5, 8, 8))).shape == (5, 10)


def test_parameters_come_from_the_seed():
    def kernel(seed):
        model = build_model(ModelConfig(widths=(4,)), seed)
        return jax.tree.leaves(nnx.state(model))[1]

    assert np.array_equal(kernel(0), kernel(0))
    assert not np.array_equal(kernel(0), kernel(1))


def test_digits_are_split_once_and_for_all():
    train, test = split_digits(0.2)
    assert train.images.shape == (1437, 8, 8)
    assert test.images.shape == (360, 8, 8)
    assert train.images.min() == 0
    assert train.images.max() == 1
    # Every class has its share of the test: about a tenth of 360.
    assert np.all(np.abs(np.bincount(test.labels) - 36) <= 1)
    seen = {image.tobytes() for image in np.asarray(train.images)}
    assert not any(image.tobytes() in seen for image in np.asarray(test.images))
    assert np.array_equal(test.images, split_digits(0.2).test.images)
