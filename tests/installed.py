"""Check an installed package, as `make wheel` does where nothing else is installed."""

import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import optax

import adam_jax
from adam_jax import fused
from adam_jax.experiments.problems import data


def main() -> None:
    """Step 8-bit moments natively, ask for the command line, and read its data."""
    where = pathlib.Path(adam_jax.__file__)
    assert where.is_relative_to(sys.prefix), f"{where} is not what was installed"
    assert fused.backend() == "native", fused.backend()

    tx = adam_jax.adamw(1e-3, mu_dtype="8bit", nu_dtype="8bit")
    params = {"w": jnp.linspace(0.5, 1, 1000), "b": jnp.ones(3)}
    grads = jax.tree.map(jnp.sin, params)
    state = tx.init(params)
    stepped = jax.jit(fused.step(tx))(params, grads, state)
    updates, after = jax.jit(tx.update)(grads, state, params)
    composed = optax.apply_updates(params, updates), after
    chex.assert_trees_all_close(stepped, composed, rtol=1e-6)

    command = pathlib.Path(sys.prefix, "bin", "adam-jax")
    help_ = subprocess.run([command, "--help"], capture_output=True, text=True)
    wanted = "pip install 'adam_jax[experiments]'"
    assert help_.returncode and wanted in help_.stderr, help_.stderr
    configs = where.parent / "experiments" / "configs"
    assert len([*configs.glob("*.toml")]) > 20, f"no configs in {configs}"
    for name in ("digits", "mnist", "words"):
        assert len(data.split_classes(name, 0.2).train.labels) > 1000, name
    assert len(data.split_topics(0.1, 64).train.labels) > 1000
    licences = [path.name for path in data.FOLDER.glob("LICENSE-*")]
    assert len(licences) == 4, f"no licences in {data.FOLDER}"
    print(f"{where.parent}: native steps are right on jax {jax.__version__}")


if __name__ == "__main__":
    main()
