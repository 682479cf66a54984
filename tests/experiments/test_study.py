"""Populations: many runs in one program, each as if it had been made alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.experiments.problems.tasks import build_task
from adam_jax.experiments.running.optimization import build_optimizer, build_schedule
from adam_jax.experiments.running.training import Trainer
from adam_jax.experiments.settings.config import OptimizerConfig, TrainConfig
from adam_jax.experiments.study import population
from adam_jax.experiments.study.grids import list_settings
from adam_jax.experiments.study.population import Population
from adam_jax.experiments.study.study_config import (
    Candidate,
    GridConfig,
    Range,
    StudyConfig,
    SweepConfig,
    SweptCandidate,
)

CURVES = ("train_loss", "test_loss", "accuracy")
ADAMW = Candidate(name="adamw", schedule="cosine", warmup_steps=2, eps=1e-6)
TASK = {"batch_size": 359, "epochs": 3, "arguments": {"widths": [8]}}
STUDY = StudyConfig(**TASK, seeds=[5, 0], optimizers=(ADAMW,))
SETTINGS = [
    {"learning_rate": 1e-2, "b2": 0.9, "weight_decay": 0.1},
    {"learning_rate": 3e-3, "b2": 0.99, "weight_decay": 0.0},
]


def build(settings=SETTINGS, config=STUDY):
    return Population(config, build_task(config), ADAMW, settings)


def train(population):
    return [member for _, done in population.train() for member in done]


def curves(members):
    return np.array([[member.curve(curve) for curve in CURVES] for member in members])


def loops(population, chunk):
    """Return how often a loop over members goes round."""
    hyperparams, keys = population._select(range(chunk))
    carry = population._init(hyperparams, keys)
    program = jax.make_jaxpr(population._advance_members)
    jaxpr = program(hyperparams, carry, keys, 1, population.task.batches.rows, 0, 4)
    return [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]


@pytest.fixture(scope="module")
def whole():
    """Train a population in one chunk."""
    trained = build()
    return trained, train(trained)


def test_a_member_is_the_run_of_its_setting_and_seed(whole):
    member = whole[1][2]
    assert (member.optimizer, member.seed) == ("adamw", 5)
    assert member.setting == SETTINGS[1] | {"eps": 1e-6}
    options = dataclasses.asdict(ADAMW) | SETTINGS[1]
    del options["label"]
    optimizer = OptimizerConfig(**options)
    trainer = Trainer(TrainConfig(**TASK, seed=5, optimizer=optimizer))
    epochs = [epoch for epoch in trainer.segments() if epoch]
    for curve in CURVES:
        alone = [(epoch._asdict() | epoch.metrics)[curve] for epoch in epochs]
        # Twelve steps, each of which rounds a few sums of 359 terms otherwise.
        np.testing.assert_allclose(member.curve(curve), alone, rtol=1e-5)


def test_members_are_settings_times_seeds_and_all_differ(whole):
    _, members = whole
    made = [(m.setting["learning_rate"], m.seed) for m in members]
    assert made == [(1e-2, 5), (1e-2, 0), (3e-3, 5), (3e-3, 0)]
    assert len({tuple(member.train_loss) for member in members}) == 4


def test_a_diverged_member_leaves_its_neighbours_alone(whole):
    other = [SETTINGS[0], SETTINGS[1] | {"learning_rate": 1e38}]
    members = train(build(other))
    assert all(math.isnan(member.test_loss[-1]) for member in members[2:])
    assert curves(members[:2]).tobytes() == curves(whole[1][:2]).tobytes()


def test_chunks_fit_the_memory_and_share_one_program(whole, monkeypatch):
    needed = whole[0].bytes_needed
    config = dataclasses.replace(STUDY, seeds=[5, 0, 1], memory=needed)
    task = build_task(config)
    chunked = Population(config, task, ADAMW, SETTINGS)
    traces = []
    run = Population._advance_members

    def count(self, *args):
        traces.append(args)
        return run(self, *args)

    monkeypatch.setattr(Population, "_advance_members", count)
    steps = [(working, len(done)) for working, done in chunked.train()]
    assert chunked.chunk in (4, 5)
    assert chunked.bytes_needed <= needed
    assert len(traces) <= 1  # where all six at once had not fitted
    last = 6 - chunked.chunk
    first = [(chunked.chunk, 0)] * 2 + [(chunked.chunk, chunked.chunk)]
    assert steps == [*first, (last, 0), (last, 0), (last, last)]


def test_other_members_are_trained_by_the_same_program(whole, monkeypatch):
    population, members = build(), whole[1]
    train(population)
    monkeypatch.setattr(population, "_compile", None)
    population.members = [(members[0].setting, 0), (members[2].setting, 5)]
    chosen, lengths = [], set()
    for _, done in population.train():
        chosen += done
        lengths |= {len(leaf) for leaf in jax.tree.leaves(population.carry)}
    assert lengths == {4} and population.carry is None
    assert [(x.setting, x.seed) for x in chosen] == population.members
    # They fill half a chunk; the members of `whole` are in the order of settings.
    np.testing.assert_array_equal(curves(chosen), curves([members[1], members[2]]))


def test_a_state_may_hold_the_first_parameters(monkeypatch):
    """The program overwrites the buffers of both, so they must be two."""

    def keeper(learning_rate):
        del learning_rate
        return optax.GradientTransformation(
            lambda params: (params, params),
            lambda updates, state, params=None: (updates, state),
        )

    monkeypatch.setitem(adam_jax.OPTIMIZERS, "keeper", keeper)
    candidate = Candidate(name="keeper")
    config = dataclasses.replace(STUDY, epochs=1, optimizers=(candidate,))
    task = build_task(config)
    population = Population(config, task, candidate, [{"learning_rate": 1.0}])
    first = task.init(jax.random.key(5))
    next(population.train())
    for kept in population.carry[1]:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x[0], y, 1e-6), kept, first
        )


def test_side_by_side_there_is_no_loop_over_members(whole):
    assert loops(whole[0], 3) == []


def test_without_memory_members_are_trained_in_turn(whole):
    config = dataclasses.replace(STUDY, memory=1)
    single = build(config=config)
    assert single.chunk == 1 and loops(single, 1) == [1]
    np.testing.assert_allclose(curves(train(single)), curves(whole[1]), rtol=1e-5)
    assert single.bytes_needed > 1


def test_members_that_are_trained_alone_come_to_the_same(whole, monkeypatch):
    monkeypatch.setattr(population, "ALONE", "while")
    alone = build()
    assert alone.chunk == 1
    np.testing.assert_allclose(curves(train(alone)), curves(whole[1]), rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"b2": 1.0}, r"b2 must be a decay rate in \[0, 1\), got 1.0"),
        ({"momentum": 0.9}, "optimizer.momentum is set, but adamw does not take it"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate: .* greater than 0, got 0.0"),
        (
            {"decay_per_step": 0.1, "weight_decay": 0.1},
            "optimizer.decay_per_step is 0.1, but must be left out where",
        ),
        ({"l2": -1.0}, "optimizer.l2: .* greater than or equal to 0, got -1.0"),
    ],
)
def test_each_setting_is_checked_before_anything_runs(setting, message):
    with pytest.raises(ValueError, match=message):
        build([SETTINGS[0], setting])


def test_decay_per_step_is_apart_from_the_learning_rate():
    # Without gradients there is nothing but the decay.
    setting = {"learning_rate": 1e-2, "decay_per_step": 0.1}
    candidate = Candidate(name="adamw", schedule="cosine")
    config = dataclasses.replace(candidate, **setting)
    halfway = build_schedule(config, 20)(10)
    tx = build_optimizer(candidate, halfway, **setting)
    updates, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
    np.testing.assert_allclose(updates, -0.1 / 2, rtol=1e-6)


def test_l2_is_added_to_the_gradient_before_the_moments():
    params, grads = jnp.array([1.0, -2.0]), jnp.array([0.1, 0.3])
    config = OptimizerConfig(name="adam", l2=0.5)
    tx, plain = build_optimizer(config, 0.1), build_optimizer(OptimizerConfig(), 0.1)
    state, plain_state = tx.init(params), plain.init(params)
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        expected, plain_state = plain.update(grads + 0.5 * params, plain_state, params)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        params = params + updates


SWEPT = SweptCandidate()


def list_grid(draws=None, seed=0, **axes):
    grid = GridConfig(**axes)
    config = SweepConfig(optimizers=(SWEPT,), grid=grid, draws=draws, draw_seed=seed)
    return list_settings(config, SWEPT)


def test_a_grid_is_every_combination():
    rates = Range(min=1e-4, max=1, count=5)
    decays = Range(min=0, max=0.2, count=3, scale="linear")
    settings = list_grid(learning_rate=rates, weight_decay=decays, b2=[0.9])
    rates, decays = [1e-4, 1e-3, 1e-2, 0.1, 1.0], [0, 0.1, 0.2]
    expected = [
        {"learning_rate": rate, "b2": 0.9, "weight_decay": decay}
        for rate in rates
        for decay in decays
    ]
    assert settings == expected


def test_an_optimizer_may_have_values_of_its_own():
    own = SweptCandidate(grid=GridConfig(b1=[0.5], l2=[0.1, 1]), label="own")
    shared = GridConfig(learning_rate=[0.01], b1=[0, 0.9])
    config = SweepConfig(optimizers=(SWEPT, own), grid=shared)
    assert [list_settings(config, candidate) for candidate in config.optimizers] == [
        [{"learning_rate": 0.01, "b1": b1} for b1 in (0, 0.9)],
        [{"learning_rate": 0.01, "b1": 0.5, "l2": l2} for l2 in (0.1, 1)],
    ]


def test_draws_are_spread_as_the_ranges_are_scaled():
    axes = {
        "learning_rate": Range(min=1e-4, max=1),
        "b1": Range(min=0, max=0.8, scale="linear"),
        "b2": [0.9, 0.99],
    }
    settings = list_grid(draws=4000, **axes)
    assert settings == list_grid(draws=4000, **axes)
    assert settings != list_grid(draws=4000, seed=1, **axes)
    rates, b1, b2 = (np.array([s[key] for s in settings]) for key in axes)
    assert 1e-4 <= rates.min() < rates.max() <= 1
    assert 0 <= b1.min() < b1.max() <= 0.8
    # Of a mean of 4,000 draws from [0, 1] four standard errors are 0.018.
    for means in ((np.log10(rates) + 4) / 4, b1 / 0.8, b2 == 0.9):
        assert abs(means.mean() - 0.5) < 0.032
