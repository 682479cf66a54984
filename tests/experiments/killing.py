"""Train in forked processes, and kill these: `killing.py FOLDER KILLS SEED`.

A process that has imported everything, but not started JAX, forks one life after the
other: that is what makes 20 of them quick. Prints what was seen as JSON.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from adam_jax import FIGURES
from adam_jax.experiments import commands  # noqa: F401 (before forks)
from adam_jax.experiments.cli import main
from adam_jax.experiments.running import optimization, run
from adam_jax.experiments.running.folder import RunFolder

TRAIN = (
    "train",
    "--batch_size=100",  # 14 steps an epoch
    "--epochs=3",
    "--arguments.widths=[]",
    "--checkpoint_every=3",
)


def live(argv, pipe):
    """Run the command line, and tell of each checkpoint when its writing begins."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    save = RunFolder.save

    def tell(self, step, state):
        os.write(pipe, b"s")
        save(self, step, state)

    RunFolder.save = tell
    os._exit(main(argv))


class Life:
    """A process that trains."""

    def __init__(self, *argv):
        self.pipe, end = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            live(argv, end)
        os.close(end)

    def await_save(self, number):
        """Return when that checkpoint of this life is begun, or at its end."""
        for _ in range(number):
            if not os.read(self.pipe, 1):
                return

    def await_end(self, seconds):
        """Return at its end, or after so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.pipe], [], [], left)[0] and not os.read(
                self.pipe, 1
            ):
                return

    def kill(self):
        """Kill it, and tell how it ended: -9, or the exit code if it was too late."""
        os.kill(self.process, signal.SIGKILL)
        return self.join()

    def join(self):
        _, status = os.waitpid(self.process, 0)
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(status)


def read_results(run):
    """Give the bytes that must not depend on the kills."""
    return [(run / name).read_bytes() for name in ("metrics.jsonl", "params.npz")]


def kill_and_resume(folder, kills, seed):
    """Kill runs at random moments, so many times, and bring each to its end."""
    draw = random.Random(seed)
    # This life alone has something to compile; the others find it in JAX's cache.
    assert Life(*TRAIN, f"--runs_dir={folder}", "--name=whole").join() == 0
    expected = read_results(folder / "whole")
    seen = {"kills": 0, "in_a_write": 0, "runs": 0, "wrong": 0, "codes": []}
    while seen["kills"] < kills:
        seen["runs"] += 1
        run = folder / f"run{seen['runs']}"
        argv = (*TRAIN, f"--runs_dir={folder}", f"--name={run.name}")
        while True:
            if (run / "config.toml").exists():
                argv = ("train", f"--resume={run}")
            life = Life(*argv)
            if seen["kills"] == kills:
                code = life.join()
            else:
                if draw.random() < 0.5:
                    life.await_save(draw.randint(1, 3))
                    life.await_end(draw.uniform(0, 0.1))
                else:
                    life.await_end(draw.uniform(0, 2))
                code = life.kill()
            if code != -signal.SIGKILL:
                break
            seen["kills"] += 1
            seen["in_a_write"] += any(run.glob("checkpoints/*.unfinished"))
        seen["codes"].append(code)
        seen["wrong"] += read_results(run) != expected
    return seen


if __name__ == "__main__":
    # With one figure, and no picture of it, a life starts and ends sooner.
    optimization.FIGURES = {"update_norm": FIGURES["update_norm"]}
    run.draw_run = run.to_picture = lambda *_: b""
    print(json.dumps(kill_and_resume(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
