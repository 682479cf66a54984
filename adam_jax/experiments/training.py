"""The training loop: one epoch is one compiled scan over its batches."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adam_jax import check_skips, named_figures
from adam_jax.experiments.config import TaskConfig, TrainConfig
from adam_jax.experiments.data import Dataset, Examples
from adam_jax.experiments.metrics import Epoch
from adam_jax.experiments.optimization import build_optimizer, build_schedule, watch
from adam_jax.experiments.problems import build_problem

STUCK = 100  # steps that a guard skips in a row before the run is given up


class Diverged(RuntimeError):
    """Tell that a run cannot go on."""


class Trainer:
    """Train the model of a config, epoch by epoch.

    Attributes:
      params: The parameters after the last finished epoch.
      opt_state: The optimizer state before the first one.
      steps_per_epoch: Batches in an epoch.
      seconds: Time spent in epochs so far: tests included, compilation not.

    Raises:
      ValueError: if the data, the schedule or the optimizer refuses the config.
    """

    def __init__(self, config: TrainConfig):
        """Load the data, draw the parameters, and compile the epoch."""
        self.config = config
        self.problem = build_problem(config)
        self.dataset = self.problem.dataset
        self.steps_per_epoch = count_steps(config, self.dataset)
        steps = config.epochs * self.steps_per_epoch
        self.schedule = build_schedule(config.optimizer, steps)
        self.params = self.problem.init(jax.random.key(config.seed))
        # The last step of an epoch is the one that is measured.
        self.tx = watch(
            build_optimizer(config.optimizer, self.schedule),
            config.optimizer,
            self.schedule,
            self.params,
            every=self.steps_per_epoch,
        )
        self.opt_state: Any = self.tx.init(self.params)
        self.key = jax.random.key(config.seed)
        self.seconds = 0.0
        # Compiled here, once: what the optimizer refuses at its first trace is then
        # refused before anything is written, and no epoch's time includes it.
        self._compiled_epoch = (
            jax.jit(self._run_epoch, donate_argnums=(0, 1))
            .lower(self.params, self.opt_state, self.dataset, self.key)
            .compile()
        )

    def epochs(self) -> Iterator[Epoch]:
        """Train, and report each epoch when it is done.

        Raises:
          Diverged: if the guard skips one step after the other.
        """
        start = self.params
        params, opt_state = jax.tree.map(jnp.copy, (start, self.opt_state))
        for epoch in range(1, self.config.epochs + 1):
            began = time.perf_counter()
            params, opt_state, measured = self._compiled_epoch(
                params, opt_state, self.dataset, jax.random.fold_in(self.key, epoch)
            )
            measured = {key: x.item() for key, x in jax.device_get(measured).items()}
            self.seconds += time.perf_counter() - began
            # A copy, because the next epoch overwrites its arguments.
            self.params = jax.tree.map(jnp.copy, params)
            step = epoch * self.steps_per_epoch
            figures = named_figures(opt_state, params)
            taken = step - measured["skipped"]
            yield Epoch(
                epoch=epoch,
                step=step,
                learning_rate=jnp.asarray(self.schedule(max(0, taken - 1))).item(),
                figures=figures,
                moved=measure_moved(start, params),
                **measured,
            )
            try:
                check_skips(opt_state, limit=STUCK)
            except RuntimeError as error:
                raise Diverged(f"training is stuck: {error}") from error

    def _run_epoch(self, params: Any, opt_state: Any, dataset: Dataset, key: Array):
        train, size = dataset.train, self.config.batch_size
        count = self.steps_per_epoch
        order = jax.random.permutation(key, len(train.labels))
        batches = order[: count * size].reshape(-1, size)

        def step(carry, batch_and_number):
            params, opt_state = carry
            batch, number = batch_and_number
            examples = Examples(train.inputs[batch], train.labels[batch])
            loss, grads = jax.value_and_grad(self.problem.loss)(
                params, examples, jax.random.fold_in(key, number)
            )
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(
            step, (params, opt_state), (batches, jnp.arange(count))
        )
        test_loss, test_accuracy = self.problem.test(params, dataset.test)
        measured = {
            "train_loss": losses.mean(),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "skipped": optax.tree.get(opt_state, "skipped", jnp.zeros([], jnp.int32)),
        }
        return params, opt_state, measured


def count_steps(config: TaskConfig, dataset: Dataset) -> int:
    """Count the batches of an epoch.

    Raises:
      ValueError: if there are too few examples.
    """
    available = len(dataset.train.labels)
    filled = available // config.batch_size
    steps = config.epoch_steps or filled
    if not 0 < steps <= filled:
        raise ValueError(
            f"batch_size is {config.batch_size} and epoch_steps {steps or 1}, but "
            f"there are only {available} training examples"
        )
    return steps


def measure_moved(start: Any, params: Any) -> dict[str, float]:
    """Give the root mean square of params - start of each leaf, by its path."""

    def distance(before: Any, after: Any) -> float:
        # The squares of a run that diverges need the range.
        moved = np.asarray(after, np.float64) - np.asarray(before, np.float64)
        return float(np.sqrt(np.mean(np.square(moved))))

    distances = jax.tree.map(distance, start, params)
    leaves = jax.tree_util.tree_leaves_with_path(distances)
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/"): value for path, value in leaves}
