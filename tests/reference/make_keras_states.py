"""Write keras_states.npz: runs of Keras' optimizers, with their variables halfway.

Made with Keras 3.15.1 and JAX 0.10.2 on CPU. To make it again:

    python3.11 -m venv /tmp/vkeras
    /tmp/vkeras/bin/pip install keras==3.15.1 jax==0.10.2 h5py==3.16.0
    /tmp/vkeras/bin/python tests/reference/make_keras_states.py

Every case but "archive" takes 20 gradients from the same parameters. The file holds,
for a parameter such as <name> = "dense/kernel":

    params0/<name>            (...)      before the first gradient, float64
    grads/<name>              (20, ...)  every gradient, float64
    <case>/params10/<name>    (...)      after gradient 10
    <case>/params20/<name>    (...)      after gradient 20
    <case>/state10/<number>   (...)      optimizer.variables after gradient 10
    <case>/state20/<number>   (...)      optimizer.variables after gradient 20
    <case>/paths              JSON       the paths of optimizer.variables
    <case>/optimizer          JSON       keras.optimizers.serialize(optimizer)
    names                     JSON       the parameters in the optimizer's order
    keras_version             "3.15.1"

"archive" trains a model for 10 batches, saves it as a `.keras` archive, and goes on
with gradients 11 to 20. Its state10 is the group "optimizer/vars" of the archive's
weights, and its optimizer is what "config.json" holds. "archive_float16" and
"archive_bfloat16" have these alone, of models with those policies.
"""

import io
import json
import os
import zipfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np

jax.config.update("jax_enable_x64", True)

LR = 0.01
STEPS, HALFWAY = 20, 10
# As many as Nadam needs before its schedule of momentum has come to its end.
PRELUDE = 700
SCHEDULE = ("ExponentialDecay", {"initial_learning_rate": LR, "decay_steps": 5})
# name: Keras' class and arguments, beside the learning rate
CASES = {
    "adam": ("Adam", {}),
    "adam_eps": ("Adam", {"epsilon": 1e-3}),
    "adam_amsgrad": ("Adam", {"amsgrad": True, "beta_1": 0.8, "beta_2": 0.9}),
    "adam_ema": ("Adam", {"use_ema": True, "ema_momentum": 0.9}),
    "adam_accumulated": ("Adam", {"gradient_accumulation_steps": 2}),
    "adam_scheduled": ("Adam", {"learning_rate": SCHEDULE}),
    "adam_both": (
        "Adam",
        {
            "learning_rate": SCHEDULE,
            "gradient_accumulation_steps": 5,
            "use_ema": True,
            "ema_momentum": 0.9,
        },
    ),
    "adam_scaled": ("Adam", {}),
    "adam_clipnorm": ("Adam", {"clipnorm": 0.5}),
    "adam_global_clipnorm": ("Adam", {"global_clipnorm": 0.5}),
    "adam_clipvalue": ("Adam", {"clipvalue": 0.1}),
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "adamax": ("Adamax", {"epsilon": 1e-3}),
    "nadam": ("Nadam", {}),
    "nadam_late": ("Nadam", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop_centered": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "adagrad": ("Adagrad", {}),
    "sgd": ("SGD", {}),
    "sgd_momentum": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd_nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "sgd_scheduled": ("SGD", {"learning_rate": SCHEDULE, "momentum": 0.9}),
    "sgd_scheduled_nesterov": (
        "SGD",
        {
            "learning_rate": SCHEDULE,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.1,
        },
    ),
    "lion": ("Lion", {"weight_decay": 0.1}),
    "adadelta": ("Adadelta", {}),
}
IN_FLOAT32 = ("adam", "adam_amsgrad", "rmsprop_centered", "sgd_nesterov")


def make_model(policy=None):
    """Return a model whose parameters are those of every case."""
    keras.utils.clear_session()  # so that names begin anew, and policies
    keras.config.set_dtype_policy(policy or keras.config.floatx())
    model = keras.Sequential(
        [
            keras.layers.Input((2,), dtype="int32"),
            keras.layers.Embedding(5, 4, name="embedding"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="dense"),
            keras.layers.LayerNormalization(name="norm"),
        ],
        name="model",
    )
    return model


def name(variable):
    """Return what a parameter is called in the file."""
    return variable.path.removeprefix("model/")


def make_inputs():
    """Return the first parameters and all gradients by name, of many scales."""
    rng = np.random.default_rng(0)
    params0, grads = {}, {}
    for variable in make_model().trainable_variables:
        shape = tuple(variable.shape)
        params0[name(variable)] = rng.normal(size=shape)
        scales = 10 ** rng.uniform(-4, 1, size=shape)
        grads[name(variable)] = scales * rng.normal(size=(STEPS, *shape))
    grads["embedding/embeddings"][:14, 4] = 0.0
    return params0, grads


def make_optimizer(case):
    """Return the optimizer of a case."""
    kind, kwargs = CASES[case.removesuffix("_float32")]
    rate = kwargs.get("learning_rate", LR)
    if rate is SCHEDULE:
        rate = keras.optimizers.schedules.ExponentialDecay(**rate[1], decay_rate=0.5)
    made = getattr(keras.optimizers, kind)(**{**kwargs, "learning_rate": rate})
    if case == "adamw":
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if case == "adam_scaled":
        made = keras.optimizers.LossScaleOptimizer(made)
    return made


def hold(key, variables):
    """Return the arrays of variables by number."""
    return {f"{key}/{i}": np.asarray(x) for i, x in enumerate(variables)}


def go_on(optimizer, variables, grads, first, last):
    """Take some of the gradients."""
    for step in range(first, last):
        scale = optimizer.scale_loss(1.0)
        params, state = optimizer.stateless_apply(
            [x.value for x in optimizer.variables],
            [jnp.asarray(scale * grads[name(x)][step], x.dtype) for x in variables],
            [x.value for x in variables],
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*params, *state], strict=True
        ):
            variable.assign(value)


def params(key, variables):
    """Return the arrays of parameters by name."""
    return {f"{key}/{name(x)}": np.asarray(x) for x in variables}


def run(case, inputs):
    """Return the arrays of one case, by their keys without its name."""
    params0, grads = inputs
    keras.config.set_floatx("float32" if case.endswith("float32") else "float64")
    variables = make_model().trainable_variables
    for x in variables:
        x.assign(params0[name(x)])
    optimizer = make_optimizer(case)
    optimizer.build(variables)
    for _ in range(PRELUDE // STEPS if case == "nadam_late" else 0):
        go_on(optimizer, variables, grads, 0, STEPS)
    go_on(optimizer, variables, grads, 0, HALFWAY)
    arrays = params("params10", variables) | hold("state10", optimizer.variables)
    go_on(optimizer, variables, grads, HALFWAY, STEPS)
    arrays |= params("params20", variables) | hold("state20", optimizer.variables)
    arrays["paths"] = json.dumps([x.path for x in optimizer.variables])
    arrays["optimizer"] = json.dumps(keras.optimizers.serialize(optimizer))
    return arrays


def save(model):
    """Return what an archive of a model holds of its optimizer."""
    path = "/tmp/archive.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))
    os.remove(path)
    with h5py.File(weights) as file:
        group = file["optimizer/vars"]
        arrays = {f"state10/{key}": group[key][()] for key in group}
    return arrays | {"optimizer": json.dumps(config["compile_config"]["optimizer"])}


def train(policy, inputs):
    """Return the arrays of an archive, by their keys without its name."""
    keras.config.set_floatx(policy if policy == "float64" else "float32")
    keras.utils.set_random_seed(0)
    model = make_model(policy)
    model.compile(keras.optimizers.Adam(LR), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (80, 2)), rng.normal(size=(80, 3))
    model.fit(x, y, batch_size=8, verbose=0)
    arrays = save(model)
    if policy == "float64":
        variables = model.trainable_variables
        arrays |= params("params10", variables)
        go_on(model.optimizer, variables, inputs[1], HALFWAY, STEPS)
        arrays |= params("params20", variables)
    return arrays


def main():
    keras.config.set_floatx("float64")
    inputs = params0, grads = make_inputs()
    arrays = {f"params0/{key}": x for key, x in params0.items()}
    arrays |= {f"grads/{key}": x for key, x in grads.items()}
    made = {case: run(case, inputs) for case in CASES}
    for case in IN_FLOAT32:
        made[f"{case}_float32"] = run(f"{case}_float32", inputs)
    made["archive"] = train("float64", inputs)
    made["archive_float16"] = train("mixed_float16", inputs)
    made["archive_bfloat16"] = train("bfloat16", inputs)
    for case, own in made.items():
        arrays |= {f"{case}/{key}": value for key, value in own.items()}
    np.savez_compressed(
        Path(__file__).with_name("keras_states.npz"),
        names=json.dumps(list(params0)),
        keras_version=keras.__version__,
        **arrays,
    )


if __name__ == "__main__":
    main()
