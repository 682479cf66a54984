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

from adam_jax.experiments.problems.tasks import Task
from adam_jax.experiments.running.optimization import build_optimizer, build_schedule
from adam_jax.experiments.running.training import Carry, take_steps
from adam_jax.experiments.settings.arguments import make_config
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.study_config import Candidate, StudyConfig, set_options

# Programs of one member at a time: XLA on CPU runs the grouped convolution that vmap
# makes of theirs 3.6 times slower (16 members of digits_cnn, a step each).
ALONE = "= conv_general_dilated["


class Population:
    """Train one optimizer under each setting from each seed.

    The hyperparameters are arguments of the compiled program, which trains a chunk of
    members for an epoch; the last chunk is filled up with copies of its last member.
    A member sees the batches, and starts from the parameters, that `adam-jax train`
    gives its seed.

    Attributes:
      members: The hyperparameters and the seed of each member. Others that set the
        same hyperparameters may take their place: the program is not compiled again.
      chunk: How many are trained at once, as it looks before compilation.
      bytes_needed: What a chunk needs, once it is compiled.
      carry: What goes from step to step of the chunk at work, a row for each member,
        after the epoch that was last reported; None after training.
    """

    def __init__(
        self,
        config: StudyConfig,
        task: Task,
        candidate: Candidate,
        settings: Sequence[dict[str, float]],
    ):
        """Trace the program, or raise a ValueError if a setting is refused."""
        self.config, self.task, self.candidate = config, task, candidate
        self.steps_per_epoch = task.batches.steps
        self.steps = config.epochs * self.steps_per_epoch
        for setting in settings:
            table = dataclasses.asdict(candidate) | setting
            checked = make_config(type(candidate), table, "optimizer")
            build_optimizer(checked, build_schedule(checked, self.steps))
        self.members = [
            (set_options(candidate, setting), seed)
            for setting, seed in itertools.product(settings, config.seed_list)
        ]
        self.bytes_needed = 0
        self.carry: Any = None
        self._start_states = jax.jit(
            jax.vmap(lambda hyperparams, params: self._build(hyperparams).init(params))
        )
        carried = _count_bytes(jax.eval_shape(self._init, *self._select([0])))
        fitting = max(1, config.memory_bytes // carried)
        self.chunk = min(len(self.members), fitting)
        self._traced = self._trace()
        self._compiled: Any = None

    def count_whole(self, done: int) -> int:
        """Count the members in whole chunks, where so many of all are done."""
        if done == len(self.members):
            return done
        self._make_ready()
        return done - done % self.chunk

    def train(self, begin: int = 0) -> Iterator[tuple[int, list[Member]]]:
        """Train chunk by chunk, and report after each epoch of a chunk.

        Gives how many members were trained for an epoch, and those that are then done.
        A study that goes on begins with the first member of a chunk, and so repeats
        every bit of one that was not interrupted.
        """
        self._make_ready()
        for first in range(begin, len(self.members), self.chunk):
            working = range(first, min(first + self.chunk, len(self.members)))
            chosen = [min(first + n, working[-1]) for n in range(self.chunk)]
            hyperparams, keys = self._select(chosen)
            self.carry = self._init(hyperparams, keys)
            history = []
            for epoch in range(1, self.config.epochs + 1):
                history.append(self._train_epoch(hyperparams, keys, epoch))
                if epoch < self.config.epochs:
                    yield len(working), []
            # Copies that fill up the last chunk are left out.
            curves = jax.tree.map(lambda *epochs: np.stack(epochs, axis=1), *history)
            done = [
                Member(
                    self.candidate.title,
                    *self.members[number],
                    **jax.tree.map(lambda x, row=row: x[row].tolist(), curves),
                )
                for row, number in enumerate(working)
            ]
            yield len(working), done
        self.carry = None

    def _train_epoch(
        self, hyperparams: dict[str, Array], keys: Array, epoch: int
    ) -> dict[str, np.ndarray]:
        """Train the chunk for an epoch, and give what was measured of each member."""
        advance, test = self._compiled
        start = 0
        while start < self.steps_per_epoch:
            data, stop = self.task.batches.read(epoch - 1, start)
            state = hyperparams, self.carry, keys
            self.carry = advance(*state, epoch, data, start, stop)
            start = stop
        self.carry, measured = test(self.carry, self.task.examples)
        return jax.device_get(measured)

    def _make_ready(self) -> None:
        if self._compiled is None:
            self._compiled = self._compile()

    def _compile(self) -> Any:
        """Compile for as many members at once as the memory holds: one, if need be."""
        while True:
            steps, test = (traced.lower().compile() for traced in self._traced)
            # The data of the other program are there, too.
            data, _ = self.task.batches.read(0, 0)
            train, tested = _count_bytes(data), _count_bytes(self.task.examples)
            sizes = _count_needed(steps) + tested, _count_needed(test) + train
            self.bytes_needed = max(sizes)
            allowed = self.config.memory_bytes
            if self.bytes_needed <= allowed or self.chunk == 1:
                return steps, test
            shared = train + tested
            each = (self.bytes_needed - shared) / self.chunk
            fitting = int((allowed - shared) / each)
            self.chunk = max(1, min(self.chunk - 1, fitting))
            self._traced = self._trace()

    def _trace(self) -> Any:
        """Trace the program of the steps, and that of the test."""
        hyperparams, keys = self._select(range(self.chunk))
        carry = jax.eval_shape(self._init, hyperparams, keys)
        data, _ = self.task.batches.read(0, 0)
        advance = jax.jit(self._advance_members, donate_argnums=1)
        steps = advance.trace(hyperparams, carry, keys, 1, data, 0, 0)
        if self.chunk > 1 and ALONE in str(steps.jaxpr):
            self.chunk = 1
            return self._trace()
        test = jax.jit(self._test_members, donate_argnums=0)
        return steps, test.trace(carry, self.task.examples)

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
        params = _draw(self.task.init, keys)
        states = self._start_states(hyperparams, params)
        return Carry(params, states, jnp.zeros(len(keys)))

    def _advance_members(
        self,
        hyperparams: dict[str, Array],
        carry: Carry,
        keys: Array,
        epoch: int,
        data: Any,
        start: int,
        stop: int,
    ) -> Carry:
        def run(hyperparams: dict[str, Array], carry: Carry, key: Array) -> Carry:
            key = jax.random.fold_in(key, epoch)
            tx = self._build(hyperparams)
            return take_steps(self.task, tx, carry, data, key, start, stop)

        return self._map(run, hyperparams, carry, keys)

    # A program of its own: in a cond at the end of the steps, XLA on CPU may wait for
    # ever.
    def _test_members(self, carry: Carry, examples: Any) -> tuple[Carry, Any]:
        def test(carry: Carry) -> tuple[Carry, dict[str, Any]]:
            test_loss, metrics = self.task.test(carry.params, examples)
            mean = carry.loss_sum / self.steps_per_epoch
            measured = {"train_loss": mean, "test_loss": test_loss, "metrics": metrics}
            return carry._replace(loss_sum=jnp.zeros([])), measured

        return self._map(test, carry)

    def _map(self, function: Callable[..., Any], *members: Any) -> Any:
        # What vmap makes of a cond takes both branches, which one member need not do.
        if self.chunk == 1:
            return jax.lax.map(lambda member: function(*member), members)
        return jax.vmap(function)(*members)


@partial(jax.jit, static_argnums=0)
def _draw(init: Callable[[Array], Any], keys: Array) -> Any:
    """Draw parameters; no method, as it is compiled once for all of a problem."""
    return jax.vmap(init)(keys)


def _count_needed(compiled: Any) -> int:
    sizes = compiled.memory_analysis()
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return kept - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes


def _count_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
