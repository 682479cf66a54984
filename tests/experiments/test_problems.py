"""Problems: their losses against NumPy, and what the optimizers make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import bernoulli, norm

import adam_jax
from adam_jax.experiments.problems import data
from adam_jax.experiments.problems.built_in import drop
from adam_jax.experiments.problems.data import Dataset, Examples
from adam_jax.experiments.problems.models import build_model
from adam_jax.experiments.problems.tasks import build_task
from adam_jax.experiments.settings.config import TaskConfig

KEY = jax.random.key(3)


def problem(model, **options):
    """Build digits for a small model, its functions compiled."""
    options |= {"model": model, "widths": [7], "label_smoothing": 0.0}
    return compiled(TaskConfig(arguments=options))


def compiled(config):
    """Build a task, its functions compiled."""
    built = build_task(config)
    return built._replace(
        init=jax.jit(built.init), loss=jax.jit(built.loss), test=jax.jit(built.test)
    )


@pytest.fixture(scope="module")
def vae():
    """Build the problem of an autoencoder with three dimensions."""
    return problem("vae", latent=3)


def dense(layer, x):
    """Apply a dense layer in float64."""
    kernel, bias = (np.asarray(layer[key], np.float64) for key in ("kernel", "bias"))
    return x @ kernel + bias


def softplus(x):
    return np.log1p(np.exp(x))


def encode(params, images):
    """Give the mean and the log-variance of the code of images."""
    layers = params["encoder"]["layers"]
    hidden = softplus(dense(layers[1], images.reshape(len(images), -1)))
    return dense(params["mean"], hidden), dense(params["log_variance"], hidden)


def decode(params, codes):
    """Give the chance of each pixel to be on."""
    layers = params["decoder"]["layers"]
    logits = dense(layers[2], softplus(dense(layers[0], codes)))
    return 1 / (1 + np.exp(-logits))


def test_a_penalty_is_added_to_what_is_trained_only():
    logistic = {"model": "logistic"}
    plain, penalized = (
        build_task(TaskConfig(arguments=logistic, penalty=penalty))
        for penalty in (0, 0.3)
    )
    params, examples = plain.init(KEY), plain.examples
    squares = sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(params))
    expected = plain.loss(params, examples, KEY) + 0.15 * squares
    np.testing.assert_allclose(
        penalized.loss(params, examples, KEY), expected, rtol=1e-6
    )
    assert penalized.test(params, examples) == plain.test(params, examples)


def test_the_loss_of_the_vae_is_its_negative_elbo(vae):
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.05, vae.init(KEY))
    images = np.asarray(vae.batches.rows.inputs[:5], np.float64).round()
    examples = Examples(jnp.asarray(images, jnp.float32), vae.batches.rows.labels[:5])
    mean, log_variance = encode(params, images)
    # The divergence as an integral over each dimension, without its formula. Beyond
    # the grid there are five deviations or more.
    deviation = np.exp(log_variance / 2)
    assert np.all(np.abs(mean) + 5 * deviation < 14)
    grid = np.linspace(-14, 14, 1001)[:, None, None]
    posterior = norm(mean, deviation)
    gain = posterior.logpdf(grid) - norm.logpdf(grid)
    divergence = np.trapezoid(posterior.pdf(grid) * gain, grid, axis=0).sum(-1)
    assert divergence.min() > 0.1
    noise = np.asarray(jax.random.normal(KEY, mean.shape), np.float64)
    chances = decode(params, mean + deviation * noise)
    likelihood = bernoulli.logpmf(images.reshape(5, -1), chances).sum(-1)
    expected = np.mean(divergence - likelihood)
    # 64 pixels, each rounded to 2^-24 of a few nats.
    assert vae.loss(params, examples, KEY) == pytest.approx(expected, rel=1e-5)
    other = vae.loss(params, examples, jax.random.key(4))
    assert other != pytest.approx(expected, rel=1e-5)


def test_grey_pixels_count_as_a_share_of_both_ends(vae):
    params, labels = vae.init(KEY), jnp.zeros(5, jnp.int32)
    grey = jnp.full((5, 8, 8), 0.25)
    mean, log_variance = encode(params, np.asarray(grey, np.float64))
    noise = np.asarray(jax.random.normal(KEY, mean.shape), np.float64)
    chances = decode(params, mean + np.exp(log_variance / 2) * noise)
    unlike = -(0.25 * np.log(chances) + 0.75 * np.log(1 - chances)).sum()
    terms = 1 + log_variance - mean**2 - np.exp(log_variance)
    expected = (unlike - terms.sum() / 2) / 5
    loss = vae.loss(params, Examples(grey, labels), KEY)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_test_of_the_vae_has_its_own_key_and_no_accuracy(vae):
    params, few = vae.init(KEY), Examples(*(x[:5] for x in vae.examples))
    loss, metrics = vae.test(params, few)
    assert not metrics
    expected = vae.loss(params, few, jax.random.key(0))
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_problems_can_be_mapped_over_seeds(vae):
    keys = jnp.stack([jax.random.key(0), KEY])
    params = jax.vmap(vae.init)(keys)
    few = Examples(*(x[:5] for x in vae.examples))
    losses = jax.vmap(vae.loss, (0, None, 0))(params, few, keys)
    expected = vae.loss(vae.init(KEY), few, KEY)
    assert losses[1] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[0] != losses[1]


def test_logistic_regression_is_a_softmax_of_one_layer():
    logistic = problem("logistic")
    params, examples = logistic.init(KEY), logistic.examples
    (layer,) = params["layers"].values()
    pixels = np.asarray(examples.inputs, np.float64).reshape(-1, 64)
    logits, labels = dense(layer, pixels), np.asarray(examples.labels)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    loss, metrics = logistic.test(params, examples)
    found = chances[np.arange(len(labels)), labels]
    assert loss == pytest.approx(-np.log(found).mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_dropout_is_in_training_only():
    plain, dropped = problem("logistic"), problem("logistic", dropout=0.5)
    params, examples = plain.init(KEY), plain.examples
    assert plain.test(params, examples) == dropped.test(params, examples)
    loss = dropped.loss(params, examples, KEY)
    inputs = drop(examples.inputs, 0.5, KEY)
    by_hand = plain.loss(params, examples._replace(inputs=inputs), KEY)
    assert loss == pytest.approx(by_hand.item())
    assert loss != plain.loss(params, examples, KEY)
    assert loss != dropped.loss(params, examples, jax.random.key(4))


def test_what_is_not_dropped_grows():
    dropped = np.asarray(drop(jnp.full((100, 100), 3.0), 0.25, KEY))
    assert np.unique(dropped) == pytest.approx([0, 4])
    # Five standard deviations of a share of 10,000.
    five = 5 * (0.25 * 0.75 / 10_000) ** 0.5
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=five)


def test_the_cnn_halves_28_pixels_rounding_up():
    examples = Examples(jnp.zeros((5, 28, 28)), jnp.full(5, 9))
    data = Dataset(examples, examples)

    def build():
        return build_model("cnn", data, KEY, widths=(2, 3, 5))

    model = nnx.eval_shape(build)
    *_, head = nnx.state(model)["layers"].values()
    assert head["kernel"].shape == (4 * 4 * 5, 10)  # 28, 14, 7, 4
    logits = nnx.eval_shape(lambda: build()(examples.inputs))
    assert logits.shape == (5, 10)


@pytest.fixture(scope="module")
def wilson():
    """Build Wilson's problem with 80 examples; of the 64 to learn from, 37 are 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "WILSON_EXAMPLES", 80)
        return compiled(TaskConfig(problem="wilson"))


def descend(problem, tx, steps):
    """Train with all examples in each step, and test."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(problem.loss)(params, problem.batches.rows, KEY)
        updates, state = tx.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    params = problem.init(KEY)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
    params, _ = run((params, tx.init(params)))
    seen, right = problem.test(params, problem.batches.rows)
    _, found = problem.test(params, problem.examples)
    return params, seen, right["accuracy"], found["accuracy"]


def test_the_linear_model_starts_at_zero(wilson):
    (kernel,) = jax.tree.leaves(wilson.init(KEY))
    assert kernel.shape == (3 + 5 * 80, 1) and not kernel.any()
    # Half the square of an error of 1, and no sign is that of 0.
    assert wilson.test(wilson.init(KEY), wilson.examples) == (0.5, {"accuracy": 0.0})


def test_sgd_finds_what_holds_for_new_examples(wilson):
    params, loss, right, accuracy = descend(wilson, adam_jax.sgd(0.3), 3000)
    assert loss < 1e-5 and right == 1
    assert accuracy == 1
    # It is the solution of least norm.
    features, labels = map(np.asarray, wilson.batches.rows)
    least = np.linalg.pinv(features.astype(np.float64)) @ labels
    (kernel,) = jax.tree.leaves(params)
    np.testing.assert_allclose(kernel[:, 0], least, atol=0.01)


def falling(count):
    """Give a learning rate that lets Adam and RMSProp come to rest."""
    return 0.05 / jnp.sqrt(count + 1.0)


@pytest.mark.parametrize(
    "tx",
    [
        adam_jax.adam(falling),
        adam_jax.rmsprop(falling),
        adam_jax.adagrad(0.05, initial_accumulator_value=0.0),
    ],
    ids=["adam", "rmsprop", "adagrad"],
)
def test_adaptive_methods_find_what_holds_for_the_training_only(wilson, tx):
    params, loss, right, accuracy = descend(wilson, tx, 300)
    assert loss < 1e-3 and right == 1
    labels = wilson.examples.labels
    assert accuracy == pytest.approx((labels == 1).mean()) and accuracy < 1
    # It is sign(features^T labels) times 1/4 (Wilson et al., lemma 3.1).
    features, labels = map(np.asarray, wilson.batches.rows)
    (kernel,) = jax.tree.leaves(params)
    expected = np.sign(features.T @ labels) / 4
    np.testing.assert_allclose(kernel[:, 0], expected, atol=0.02)


def test_a_model_that_does_not_fit_is_refused():
    message = "arguments.model is 'cnn', but must be logistic or mlp for words"
    with pytest.raises(ValueError, match=message):
        build_task(TaskConfig(problem="words", arguments={"model": "cnn"}))


TRANSFORMERS = {
    "unequal blocks": (
        {"widths": [8, 4]},
        r"widths is \[8, 4\], but must be all equal",
    ),
    "no blocks": ({"widths": []}, r"widths: .* at least 1 item, .*, got \[\]"),
    "too many heads": ({"heads": 3}, "heads is 3, but must be a divisor of 64"),
    "endless windows": ({"context": 10**12}, "context: .* less than or equal to 4096"),
    "a model": ({"model": "mlp"}, "arguments: got an unexpected keyword argument"),
}


@pytest.mark.parametrize(("given", "message"), TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_a_transformer_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        build_task(TaskConfig(problem="topics", arguments=given))


def test_what_comes_along_is_a_problem_like_ones_own():
    place = "adam_jax.experiments.problems.built_in:wilson"
    own, named = (build_task(TaskConfig(problem=x)) for x in (place, "wilson"))
    assert own.loss_name == named.loss_name == "half the squared error"
    assert np.array_equal(own.examples.inputs, named.examples.inputs)
