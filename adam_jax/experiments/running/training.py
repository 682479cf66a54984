"""The training loop: one compiled program takes any number of steps of an epoch."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adam_jax import check_skips, named_figures
from adam_jax.experiments.interrupts import Diverged
from adam_jax.experiments.metrics import Epoch
from adam_jax.experiments.problems.tasks import Task, build_task
from adam_jax.experiments.running.optimization import (
    build_optimizer,
    build_schedule,
    watch,
)
from adam_jax.experiments.settings.config import TrainConfig

STUCK = 100  # steps that a guard skips in a row before the run is given up
SEGMENT_SECONDS = 1.0  # after which a run can be stopped


class Carry(NamedTuple):
    """Hold what goes from step to step; with the number of the step, all of a run."""

    params: Any
    opt_state: Any
    loss_sum: Array  # of this epoch's batches so far


class Trainer:
    """Train on the problem of a config, segment by segment.

    A segment is some steps of one epoch. Where segments begin and end changes no bit of
    the result: these are arguments of one compiled program. To go on with another run,
    its `carry` and its `step` are set.
    """

    def __init__(self, config: TrainConfig):
        """Load the data, draw the parameters, and compile the steps and the test."""
        self.config = config
        self.task = build_task(config)
        self.steps_per_epoch = self.task.batches.steps
        self.steps = config.epochs * self.steps_per_epoch
        self.schedule = build_schedule(config.optimizer, self.steps)
        self.key = jax.random.key(config.seed)
        self.start = self.task.init(self.key)
        # The last step of an epoch is the one that is measured.
        self.tx = watch(
            build_optimizer(config.optimizer, self.schedule),
            self.schedule,
            self.start,
            every=self.steps_per_epoch,
        )
        params = jax.tree.map(jnp.copy, self.start)  # the steps overwrite them
        self.carry = Carry(params, self.tx.init(self.start), jnp.zeros([]))
        self.step = 0
        # Time spent in steps and tests, without compilation, and steps in this time.
        self.seconds, self.taken = 0.0, 0
        # Compiled here, once: what the optimizer refuses at its first trace is then
        # refused before anything is written, and no epoch's time includes it.
        data, _ = self.task.batches.read(0, 0)
        self._advance = (
            jax.jit(self._take_steps, donate_argnums=0)
            .lower(self.carry, data, self.key, 0, 0)
            .compile()
        )
        self._test = jax.jit(self.task.test).lower(params, self.task.examples).compile()

    def segments(self, every: int | None = None) -> Iterator[Epoch | None]:
        """Train, and stop after each epoch, each `every` steps and each second or so.

        Gives the epoch where one is done.
        """
        length = 1
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            data, end = self.task.batches.read(epoch, done)
            stop = min(done + length, end)
            if every is not None:
                stop = min(stop, done + every - self.step % every)
            began = time.perf_counter()
            key = jax.random.fold_in(self.key, epoch + 1)
            self.carry = self._advance(self.carry, data, key, done, stop)
            jax.block_until_ready(self.carry)
            seconds = time.perf_counter() - began
            self.seconds += seconds
            self.taken += stop - done
            self.step += stop - done
            yield self._finish_epoch() if stop == self.steps_per_epoch else None
            pace = (stop - done) / seconds
            length = max(1, min(2 * length, int(pace * SEGMENT_SECONDS)))

    def check(self, epoch: Epoch) -> None:
        """Refuse to go on after an epoch that leads nowhere."""
        # A batch that the guard has skipped may have had any loss.
        guarded = self.config.optimizer.guard != "none"
        loss = epoch.test_loss + (0 if guarded else epoch.train_loss)
        if not math.isfinite(loss):
            raise Diverged(
                f"training diverged: the loss of epoch {epoch.epoch} is not finite; "
                "try a smaller --optimizer.learning_rate"
            )
        try:
            check_skips(self.carry.opt_state, limit=STUCK)
        except RuntimeError as error:
            raise Diverged(f"training is stuck: {error}") from error

    def _finish_epoch(self) -> Epoch:
        params, opt_state, loss_sum = self.carry
        began = time.perf_counter()
        test_loss, metrics = jax.device_get(self._test(params, self.task.examples))
        self.seconds += time.perf_counter() - began
        self.carry = Carry(params, opt_state, jnp.zeros([]))
        skipped = int(optax.tree.get(opt_state, "skipped", 0))
        last = max(0, self.step - skipped - 1)
        return Epoch(
            epoch=self.step // self.steps_per_epoch,
            step=self.step,
            skipped=skipped,
            learning_rate=jnp.asarray(self.schedule(last)).item(),
            train_loss=(loss_sum / self.steps_per_epoch).item(),
            test_loss=test_loss.item(),
            metrics={name: value.item() for name, value in metrics.items()},
            figures=named_figures(opt_state, params),
            moved=measure_moved(self.start, params),
        )

    def _take_steps(
        self, carry: Carry, data: Any, key: Array, start: Any, stop: Any
    ) -> Carry:
        return take_steps(self.task, self.tx, carry, data, key, start, stop)


def take_steps(
    task: Task,
    tx: optax.GradientTransformation,
    carry: Carry,
    data: Any,
    key: Array,
    start: Any,
    stop: Any,
) -> Carry:
    """Take steps `start` up to `stop` of the epoch whose data and key are given."""
    pick = task.batches.begin(data, key)

    def step(number: Array, carry: Carry) -> Carry:
        params, opt_state, loss_sum = carry
        loss, grads = jax.value_and_grad(task.loss)(
            params, pick(number), jax.random.fold_in(key, number)
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        loss_sum += loss.astype(loss_sum.dtype)
        return Carry(optax.apply_updates(params, updates), opt_state, loss_sum)

    return jax.lax.fori_loop(start, stop, step, carry)


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
