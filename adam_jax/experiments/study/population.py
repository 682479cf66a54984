"""Many runs of one optimizer in one compiled program: every setting from every seed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adam_jax.experiments.data import Dataset
from adam_jax.experiments.optimization import build_optimizer, build_schedule
from adam_jax.experiments.problems import Problem
from adam_jax.experiments.study.config import Candidate, StudyConfig, set_options
from adam_jax.experiments.study.members import CURVES, Member
from adam_jax.experiments.training import Carry, count_steps, take_steps

# Members one after the other, not side by side: XLA on CPU runs the grouped convolution
# that vmap makes of theirs 3.6 times slower (16 members of digits_cnn, a step each).
SEQUENTIAL = ("cnn",)


class Population:
    """Train one optimizer under each setting from each seed.

    The hyperparameters are arguments of the compiled program, which trains a chunk of
    members for an epoch; the last chunk is filled up with copies of its last member.
    A member sees the batches, and starts from the parameters, that `adam-jax train`
    gives its seed.

    Attributes:
      candidate: The optimizer.
      members: The hyperparameters and the seed of each member. Others that set the
        same hyperparameters may take their place: the program is not compiled again.
      chunk: How many are trained at once, as it looks before compilation.
      bytes_needed: What a chunk needs, once it is compiled.
      carry: The parameters and the optimizer's states of the chunk at work, a row for
        each member, after the epoch that was last reported; None after training.

    Raises:
      ValueError: if the data or the optimizer refuses a setting.
    """

    def __init__(
        self,
        config: StudyConfig,
        problem: Problem,
        candidate: Candidate,
        settings: Sequence[dict[str, float]],
    ):
        """Check every setting, and trace the program."""
        self.config, self.problem, self.candidate = config, problem, candidate
        self.steps_per_epoch = count_steps(config, problem.dataset)
        self.steps = config.epochs * self.steps_per_epoch
        for setting in settings:
            checked = dataclasses.replace(candidate, **setting)
            build_optimizer(checked, build_schedule(checked, self.steps))
        self.members = [
            (set_options(candidate, setting), seed)
            for setting, seed in itertools.product(settings, config.seed_list)
        ]
        self.bytes_needed = 0
        self.carry: Any = None
        self._start_states = jax.jit(jax.vmap(self._init_state))
        carried = _count_bytes(jax.eval_shape(self._init, *self._select([0])))
        fitting = max(1, config.memory_bytes // carried)
        self.chunk = min(len(self.members), fitting)
        self._traced = self._trace()
        self._compiled: Any = None

    def train(self) -> Iterator[tuple[int, list[Member]]]:
        """Train chunk by chunk, and report after each epoch of a chunk.

        Yields:
          How many members were trained for an epoch; and those that are done: none, but
          after a chunk's last epoch.
        """
        if self._compiled is None:
            self._compiled = self._compile()
        for first in range(0, len(self.members), self.chunk):
            working = range(first, min(first + self.chunk, len(self.members)))
            chosen = [min(first + n, working[-1]) for n in range(self.chunk)]
            hyperparams, keys = self._select(chosen)
            self.carry = self._init(hyperparams, keys)
            history = []
            for epoch in range(1, self.config.epochs + 1):
                self.carry, measured = self._compiled(
                    hyperparams, self.carry, keys, epoch, self.problem.dataset
                )
                history.append(jax.device_get(measured))
                if epoch < self.config.epochs:
                    yield len(working), []
            curves: np.ndarray = np.asarray(history, np.float64).transpose(2, 1, 0)
            # Copies that fill up the last chunk are left out.
            done = map(self._report, working, curves)
            yield len(working), list(done)
        self.carry = None

    def _compile(self) -> Any:
        """Compile for as many members at once as the memory holds: one, if need be."""
        while True:
            compiled = self._traced.lower().compile()
            sizes = compiled.memory_analysis()
            self.bytes_needed = (
                sizes.argument_size_in_bytes
                + sizes.output_size_in_bytes
                - sizes.alias_size_in_bytes
                + sizes.temp_size_in_bytes
            )
            allowed = self.config.memory_bytes
            if self.bytes_needed <= allowed or self.chunk == 1:
                return compiled
            shared = _count_bytes(self.problem.dataset)
            each = (self.bytes_needed - shared) / self.chunk
            fitting = int((allowed - shared) / each)
            self.chunk = max(1, min(self.chunk - 1, fitting))
            self._traced = self._trace()

    def _trace(self) -> Any:
        hyperparams, keys = self._select(range(self.chunk))
        carry = jax.eval_shape(self._init, hyperparams, keys)
        jitted = jax.jit(self._run_epoch, donate_argnums=1)
        return jitted.trace(hyperparams, carry, keys, 1, self.problem.dataset)

    def _select(self, chosen: Sequence[int]) -> tuple[dict[str, Array], Array]:
        """Give the hyperparameters and the keys of some members, a row each."""
        rows = [self.members[n] for n in chosen]
        keys = jnp.stack([jax.random.key(seed) for _, seed in rows])
        hyperparams = {
            key: jnp.asarray([options[key] for options, _ in rows], jnp.float32)
            for key in rows[0][0]
        }
        return hyperparams, keys

    def _build(self, hyperparams: dict[str, Any]) -> optax.GradientTransformation:
        peak = hyperparams["learning_rate"]
        schedule = build_schedule(self.candidate, self.steps, peak)
        return build_optimizer(self.candidate, schedule, **hyperparams)

    def _init(self, hyperparams: dict[str, Array], keys: Array) -> Any:
        params = _draw(self.problem.init, keys)
        return params, self._start_states(hyperparams, params)

    def _init_state(self, hyperparams: dict[str, Array], params: Any) -> Any:
        return self._build(hyperparams).init(params)

    def _run_epoch(
        self,
        hyperparams: dict[str, Array],
        carry: Any,
        keys: Array,
        epoch: int,
        dataset: Dataset,
    ) -> Any:
        def run(hyperparams: dict[str, Array], carry: Any, key: Array) -> Any:
            key = jax.random.fold_in(key, epoch)
            return self._run_member(hyperparams, carry, key, dataset)

        # What vmap makes of a cond takes both branches, which one member need not do.
        if self.chunk == 1 or self.config.model.name in SEQUENTIAL:
            members = (hyperparams, carry, keys)
            return jax.lax.map(lambda member: run(*member), members)
        return jax.vmap(run)(hyperparams, carry, keys)

    def _run_member(
        self, hyperparams: dict[str, Array], carry: Any, key: Array, dataset: Dataset
    ) -> Any:
        tx, size = self._build(hyperparams), self.config.batch_size
        count, train = self.steps_per_epoch, dataset.train
        params, opt_state = carry
        begun = Carry(params, opt_state, jnp.zeros([]))
        params, opt_state, loss_sum = take_steps(
            self.problem, tx, size, begun, train, key, 0, count
        )
        test_loss, test_accuracy = self.problem.test(params, dataset.test)
        return (params, opt_state), (loss_sum / count, test_loss, test_accuracy)

    def _report(self, number: int, curves: np.ndarray) -> Member:
        options, seed = self.members[number]
        values = dict(zip(CURVES, curves.tolist(), strict=True))
        return Member(self.candidate.title, options, seed, **values)


# Not a method: it is compiled once for all populations of a problem.
@partial(jax.jit, static_argnums=0)
def _draw(init: Callable[[Array], Any], keys: Array) -> Any:
    """Draw the parameters of each key."""
    return jax.vmap(init)(keys)


def _count_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
