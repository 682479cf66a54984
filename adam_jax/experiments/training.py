"""The training loop: one epoch is one compiled scan over its batches."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from adam_jax.experiments.anatomy import magnitude_quantiles, signal_to_noise
from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.data import Dataset, Examples, load_dataset
from adam_jax.experiments.models import build_model
from adam_jax.experiments.optimization import build_optimizer, build_schedule


class Epoch(NamedTuple):
    """Report one epoch; what belongs to a step belongs to the epoch's last one.

    Attributes:
      epoch: Its number, from 1.
      step: Steps taken since the start of the run.
      learning_rate: Learning rate of the step.
      train_loss: Mean loss of the epoch's batches, each before its step.
      test_loss: Loss on the test examples after the epoch.
      test_accuracy: Share of the test labels that are found, from 0 to 1.
      effective_step: Quantiles of |update| / learning rate over the parameters
        that had a gradient.
      signal_to_noise: Quantiles of |mu_hat| / sqrt(nu_hat) over the same; None if
        the optimizer lacks a moment.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    test_loss: float
    test_accuracy: float
    effective_step: dict[str, float]
    signal_to_noise: dict[str, float] | None


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
        self.dataset = load_dataset(config)
        available = len(self.dataset.train.labels)
        filled = available // config.batch_size
        self.steps_per_epoch = config.epoch_steps or filled
        if not 0 < self.steps_per_epoch <= filled:
            raise ValueError(
                f"batch_size is {config.batch_size} and epoch_steps "
                f"{self.steps_per_epoch or 1}, but there are only {available} "
                "training examples"
            )
        steps = config.epochs * self.steps_per_epoch
        self.schedule = build_schedule(config.optimizer, steps)
        self.tx = build_optimizer(config.optimizer, self.schedule)
        self.graphdef, state = nnx.split(
            build_model(
                config.model, self.dataset.train, self.dataset.classes, config.seed
            )
        )
        self.params = nnx.to_pure_dict(state)
        self.opt_state = self.tx.init(self.params)
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
        """Train, and report each epoch when it is done."""
        params, opt_state = jax.tree.map(jnp.copy, (self.params, self.opt_state))
        for epoch in range(1, self.config.epochs + 1):
            start = time.perf_counter()
            params, opt_state, measured = self._compiled_epoch(
                params, opt_state, self.dataset, jax.random.fold_in(self.key, epoch)
            )
            measured = jax.device_get(measured)
            self.seconds += time.perf_counter() - start
            # A copy, because the next epoch overwrites its arguments.
            self.params = jax.tree.map(jnp.copy, params)
            yield self._report(epoch, measured)

    def _run_epoch(self, params: Any, opt_state: Any, dataset: Dataset, key: Array):
        train, size = dataset.train, self.config.batch_size
        order = jax.random.permutation(key, len(train.labels))
        batches = order[: self.steps_per_epoch * size].reshape(-1, size)

        def step(carry, batch):
            params, opt_state, *_ = carry
            examples = Examples(train.inputs[batch], train.labels[batch])
            (loss, _), grads = jax.value_and_grad(self._loss, has_aux=True)(
                params, examples
            )
            updates, opt_state = self.tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state, grads, updates), loss

        # Gradients and updates of no step: of their types, and never read.
        updates, _ = jax.eval_shape(self.tx.update, params, opt_state, params)
        start = (params, opt_state, params, jax.tree.map(jnp.zeros_like, updates))
        last, losses = jax.lax.scan(step, start, batches)
        params, opt_state, grads, updates = last
        test_loss, test_accuracy = self._loss(params, dataset.test)
        # What AdaMax keeps as nu is of the size of g, not of its square.
        squares = not self.config.optimizer.name.startswith("adamax")
        ratio = signal_to_noise(opt_state) if squares else None
        measured = {
            "train_loss": losses.mean(),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "update": magnitude_quantiles(updates, grads),
            "signal_to_noise": ratio and magnitude_quantiles(ratio, grads),
        }
        return params, opt_state, measured

    def _loss(self, params: Any, examples: Examples) -> tuple[Array, Array]:
        logits = nnx.merge(self.graphdef, params)(examples.inputs)
        targets = jax.nn.one_hot(examples.labels, logits.shape[-1])
        targets = optax.smooth_labels(targets, self.config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        accuracy = (logits.argmax(-1) == examples.labels).mean()
        return loss, accuracy

    def _report(self, epoch: int, measured: dict[str, Any]) -> Epoch:
        step = epoch * self.steps_per_epoch
        learning_rate = jnp.asarray(self.schedule(step - 1)).item()
        measured = jax.tree.map(float, measured)
        # The end of a long cosine rounds to zero: there is nothing to divide by.
        effective_step = {
            key: size / learning_rate if learning_rate else math.nan
            for key, size in measured.pop("update").items()
        }
        return Epoch(
            epoch=epoch,
            step=step,
            learning_rate=learning_rate,
            effective_step=effective_step,
            **measured,
        )
