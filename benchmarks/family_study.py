"""Which optimizers are worth it? `python benchmarks/family_study.py`

Trains three small problems by every optimizer of `adam_jax.OPTIMIZERS`: a character
transformer, a convolutional network on MNIST, and the sparse words of SciPy's
docstrings. Each optimizer has the same budget: one run at each of seven learning rates,
and three more, from other seeds, at the rate whose test loss was the smallest.

What is done of an optimizer on a problem is one file, RUNS_DIR/PROBLEM/OPTIMIZER.json.
Files that are there are only read: a study that was stopped goes on, and an optimizer
that is new adds its own. At the end, or alone with `--table`, the page docs/study.md is
written anew from all files. `make study` runs it.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import numpy as np
from study_page import LEFT_OUT, write_page

from adam_jax import OPTIMIZERS, SwitchState
from adam_jax.experiments.cli import IN_ORDER
from adam_jax.experiments.machine import describe_machine
from adam_jax.experiments.metrics import to_json
from adam_jax.experiments.problems.batches import count_rows
from adam_jax.experiments.problems.tasks import build_task
from adam_jax.experiments.study.grids import find_border
from adam_jax.experiments.study.outcomes import find_best, group_members
from adam_jax.experiments.study.population import Population
from adam_jax.experiments.study.study_config import (
    GridConfig,
    SweepConfig,
    SweptCandidate,
)

ROOT = pathlib.Path(__file__).parents[1]
CHOOSING, REPORTED = 0, (1, 2, 3)  # seeds

# Members are trained in turn (memory = 1). Side by side, each of seven took as much CPU
# time (7.0 ms a step, and 6.2 in turn, on topics; 6.1 and 6.2 on mnist; 4.3 and 4.2 on
# words), and three seeds would need copies to fill up a program made for seven rates.
SMOOTHING = {"label_smoothing": 0.0}
TASK = {"seeds": [CHOOSING], "memory": 1}
PROBLEMS = {
    "topics": TASK
    | {
        "problem": "topics",
        "epochs": 5,
        "epoch_steps": 60,
        "batch_size": 16,
        "arguments": SMOOTHING
        | {"widths": [32, 32], "heads": 2, "context": 32, "test_share": 0.02},
    },
    "mnist": TASK
    | {
        "problem": "mnist",
        "epochs": 10,
        "epoch_steps": 30,
        "batch_size": 50,
        "arguments": SMOOTHING | {"model": "cnn", "widths": [8, 16]},
    },
    "words": TASK
    | {
        "problem": "words",
        "epochs": 8,
        "batch_size": 64,
        "arguments": SMOOTHING | {"model": "logistic", "dropout": 0.5},
    },
}

# Without momentum nobody trains by SGD what is compared with Adam. At its default, the
# paper's 1e-9, swats never switched in our trials: float32 has no such differences.
OPTIONS = {
    "sgd": {"momentum": 0.9},
    "swats": {"arguments": {"tolerance": 1e-2}},
}

# The rate in the middle of the grid: 0.01, but for optimizers whose steps have another
# scale than Adam's.
CENTRES = {
    0.001: ("lion", "signum", "tiger", "simplified_ademamix"),
    0.03: ("muon", "normuon", "adamuon", "galore_adamw", "madgrad"),
    0.1: ("sgd", "aggmo", "adagrad", "rowwise_adagrad", "sm3", "shampoo", "padam"),
    1.0: ("adadelta", "prodigy", "lars"),
}
USUAL_CENTRE = 0.01


def list_rates(optimizer):
    """List the seven rates of an optimizer, half a decade apart."""
    centres = [rate for rate, names in CENTRES.items() if optimizer in names]
    middle = round(2 * math.log10(*(centres or [USUAL_CENTRE])))
    return [float(f"{10 ** ((middle + n) / 2):.1g}") for n in range(-3, 4)]


def describe_part(problem, optimizer):
    """Build the config of an optimizer on a problem."""
    # Along a cosine: at a constant rate the noise at the end decides the order.
    candidate = SweptCandidate(
        name=optimizer, schedule="cosine", **OPTIONS.get(optimizer, {})
    )
    grid = GridConfig(learning_rate=list_rates(optimizer))
    return SweepConfig(**PROBLEMS[problem], optimizers=(candidate,), grid=grid)


@functools.cache
def load_task(name):
    """Build a task, once in a process."""
    return build_task(describe_part(name, "adam"))


def run_part(name, optimizer):
    """Train one optimizer on one problem: choose its rate, then report it.

    Returns:
      What is stored of it, ready for JSON.
    """
    began = time.process_time()
    config, task = describe_part(name, optimizer), load_task(name)
    (candidate,) = config.optimizers
    settings = [{"learning_rate": rate} for rate in list_rates(optimizer)]
    population = Population(config, task, candidate, settings)
    tried, first_seconds, _, sizes = train(population)
    (best,) = find_best(group_members(tried))
    chosen, seconds, switched = [], [], []
    if not best.diverged:
        population.members = [(best.setting, seed) for seed in REPORTED]
        chosen, seconds, switched, _ = train(population)
    return {
        "problem": name,
        "optimizer": optimizer,
        "config": to_plain(config),
        "steps_per_epoch": population.steps_per_epoch,
        "parameters": sizes["parameters"],
        "examples": [
            count_rows(part, "labels") for part in (task.batches.rows, task.examples)
        ],
        "border": chosen and find_border(best.setting, config.list_axes(candidate)),
        "tried": [json.loads(to_json(member)) for member in tried],
        "chosen": [json.loads(to_json(member)) for member in chosen],
        "switched": switched,
        "bytes_per_parameter": sizes["state_bytes"] / sizes["parameters"],
        "seconds_per_step": min(first_seconds + seconds) / population.steps_per_epoch,
        "cpu_seconds": time.process_time() - began,
        "machine": describe_machine(),
    }


def train(population):
    """Train all members of a population, one after the other.

    Returns:
      The members; the seconds of CPU time that each epoch of each took, its test
      included; after how many steps each was found to have switched to another
      algorithm, or None; and the sizes of one.
    """
    members, seconds, switched, sizes = [], [], [], {}
    epochs, steps = population.config.epochs, population.steps_per_epoch
    began = time.process_time()
    for number, (_, done) in enumerate(population.train()):
        seconds.append(time.process_time() - began)
        params, states, _ = population.carry
        sizes = {"parameters": count(params), "state_bytes": count(states, "nbytes")}
        if number % epochs == 0:
            switched.append(None)
        if switched[-1] is None and has_switched(states):
            switched[-1] = (number % epochs + 1) * steps
        members += done
        began = time.process_time()
    return members, seconds, switched, sizes


def has_switched(states):
    """Tell whether a state says that its optimizer has switched, as swats' does."""
    nodes = jax.tree.leaves(states, is_leaf=lambda x: isinstance(x, SwitchState))
    return any(np.any(x.rate > 0) for x in nodes if isinstance(x, SwitchState))


def count(tree, what="size"):
    """Count the elements or the bytes of a tree."""
    return sum(getattr(leaf, what) for leaf in jax.tree.leaves(tree))


def to_plain(config):
    """Give a config as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def make_part(name, optimizer, path):
    """Run a part and store it, whole or not at all.

    Returns:
      What to print.
    """
    try:
        part = run_part(name, optimizer)
    except Exception as error:
        return f"{name:8}{optimizer:24}FAILED: {type(error).__name__}: {error}"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(part, allow_nan=False), "utf-8")
    os.replace(unfinished, path)
    losses = [member["test_loss"][-1] for member in part["chosen"]]
    return f"{name:8}{optimizer:24}{part['cpu_seconds']:6.1f} s of CPU time  {losses}"


def make_parts(parts, jobs):
    """Make parts, as many at once as there are jobs, and tell of each.

    Returns:
      How many failed.
    """
    if jobs == 1:
        use_one_thread()
        return sum(tell(make_part(*part)) for part in parts)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=use_one_thread
    ) as pool:
        try:
            return sum(map(tell, pool.map(make_part, *zip(*parts, strict=True))))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def tell(line):
    """Print a line, and return whether it tells of a failure."""
    print(line, flush=True)
    return "FAILED" in line


def use_one_thread():
    """Keep XLA in this process to one thread, so that processes do not share cores."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{IN_ORDER} --xla_cpu_multi_thread_eigen=false {flags}"
    os.environ["XLA_FLAGS"] = flags


def read_parts(runs_dir):
    """Read all parts that are done, in the order of OPTIMIZERS.

    Raises:
      ValueError: if one was made with other settings than these.
    """
    parts = {}
    for name in PROBLEMS:
        for optimizer in OPTIMIZERS:
            path = runs_dir / name / f"{optimizer}.json"
            if not path.exists():
                continue
            part = json.loads(path.read_text("utf-8"))
            if part["config"] != to_plain(describe_part(name, optimizer)):
                raise ValueError(
                    f"{path} was made with other settings than those of {__file__}: "
                    "delete it, or give another --runs_dir"
                )
            parts[name, optimizer] = part
    return parts


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=[*PROBLEMS])
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS]
    )
    parser.add_argument("--runs_dir", type=pathlib.Path, default=ROOT / "runs/study")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs/study.md")
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--jobs", type=int, default=2, help="parts made at once")
    options = parser.parse_args(arguments)
    done = read_parts(options.runs_dir)
    missing = [
        (name, optimizer, options.runs_dir / name / f"{optimizer}.json")
        for optimizer in options.optimizers
        for name in options.problems
        if (name, optimizer) not in {**done, **LEFT_OUT}
    ]
    failed = 0
    if missing and not options.table:
        try:
            failed = make_parts(missing, options.jobs)
        except KeyboardInterrupt:
            raise SystemExit("stopped: the same command goes on from here") from None
    done = read_parts(options.runs_dir)
    if not done:
        raise SystemExit(f"there is nothing in {options.runs_dir} yet")
    write_page(options.page, done)
    print(f"{options.page}: made of {len(done)} parts")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
