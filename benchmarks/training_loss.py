"""Does a small state cost quality? `python benchmarks/training_loss.py`

Trains the character transformer of each `configs/topics_*.toml` from five seeds (20
runs of about a minute on two CPU cores; runs that are there already are only read), and
prints the mean of the final test loss, its spread over the seeds, and its distance from
float32's mean. `make figures` runs it.
"""

import argparse
import json
import pathlib
import statistics

from adam_jax.experiments.cli import main as adam_jax_command

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
BASE = "topics_float32"


def final_loss(config, seed, runs_dir):
    """Return the test loss of the last epoch of a run, made now if it is not there."""
    name = f"{config.stem}_{seed}"
    metrics = runs_dir / name / "metrics.jsonl"
    if not metrics.exists():
        options = [f"--config={config}", f"--seed={seed}", f"--name={name}"]
        code = adam_jax_command(["train", *options, f"--runs_dir={runs_dir}"])
        if code:
            raise SystemExit(code)
    last = json.loads(metrics.read_text().splitlines()[-1])
    return last["test_loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs_dir", type=pathlib.Path, default=pathlib.Path("runs"))
    options = parser.parse_args()
    configs = sorted(CONFIGS.glob("topics_*.toml"), key=lambda path: path.stem != BASE)
    losses = {
        config.stem: [
            final_loss(config, seed, options.runs_dir) for seed in range(options.seeds)
        ]
        for config in configs
    }
    base = statistics.mean(losses[BASE])
    print(f"{'config':24}{'test loss':>10}{'std':>8}{'min':>8}{'max':>8}{'change':>9}")
    for name, values in losses.items():
        mean = statistics.mean(values)
        print(
            f"{name:24}{mean:10.4f}{statistics.stdev(values):8.4f}{min(values):8.4f}"
            f"{max(values):8.4f}{mean / base - 1:9.2%}"
        )


if __name__ == "__main__":
    main()
