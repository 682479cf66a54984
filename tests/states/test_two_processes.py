"""Two processes of `jax.distributed` train, save and die as one does."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import several
from jax.sharding import AxisType, Mesh

MOST_SECONDS = 150  # 20 on two idle cores
TRIES = 3


def run_two(folder, script, files, *arguments):
    """Run a script in two processes of two devices until files are there; kill them.

    The script is given a copy of the folder, which is returned, the address of the
    first process, and which it is. Sums by gloo were seen to hang, on a loaded machine,
    once in some twenty runs. So what hangs is started again, in another copy.
    """
    for number in range(TRIES):
        copy = folder.with_name(f"{folder.name} {number}")
        shutil.copytree(folder, copy)
        with two_processes(copy, script, *arguments) as wait_for:
            said = wait_for([copy / name for name in files])
        if said is None:
            return copy
    raise AssertionError(f"not done in {TRIES} x {MOST_SECONDS} s:\n{said}")


@contextmanager
def two_processes(folder, script, *arguments):
    """Run a script in two processes of two devices; then kill them.

    Yields a function that waits for files, as long as both run. It returns None, or
    what they said if the time is over.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as in conftest.py
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    logs = [folder / f"log {number}" for number in range(2)]
    processes = []
    end = time.monotonic() + MOST_SECONDS

    def read_logs():
        return "\n".join(log.read_text()[-4000:] for log in logs)

    def wait_for(files):
        while not all(file.exists() for file in files):
            ended = any(process.poll() is not None for process in processes)
            assert not ended, f"one has ended:\n{read_logs()}"
            if time.monotonic() > end:
                return read_logs()
            time.sleep(0.02)
        return None

    try:
        for number, log in enumerate(logs):
            command = [sys.executable, script, folder, address, str(number), *arguments]
            with log.open("w") as file:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,  # closed when this process ends
                    stdout=file,
                    stderr=file,
                )
            processes.append(process)
        yield wait_for
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def check_same(found, expected):
    """Compare bit for bit: each sum over processes is of two, in whatever order."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def check_figures(halves, ends):
    """Check that the poisoned batch was seen, and skipped, and left nothing behind."""
    for _, figures, first in halves.values():
        assert figures["update_norm"] == 0 < figures["nonfinite"] and first == "b"
    for leaves, figures, first in ends.values():
        assert all(np.all(np.isfinite(np.float32(x))) for x in leaves)
        assert figures["update_norm"] > 0 == figures["nonfinite"] and first is None


@pytest.mark.crossing
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_two_processes_train_save_and_die_like_one(tmp_path, kind):
    mesh, start = several.mesh_of(), tmp_path / "start"
    trained = several.train(mesh, start / "by one")
    check_figures(*trained)
    handled = several.handle(kind, start / "handled by one")
    results = [f"results {number}" for number in range(2)]
    files = *results, "killed/4"  # is called so when it is whole
    folder = run_two(start, several.__file__, files, kind.name)
    for name in results:
        results = pickle.loads((folder / name).read_bytes())
        check_same(results["trained"], trained)
        check_same(results["resumed"], trained[1])  # written by one, read by two
        check_same(results["handled"], handled)
        assert "process_allgather" in results["refused"]
    check_same(several.resume(mesh, folder / "by two"), trained[1])

    killed = several.Run(several.KILLED, mesh)
    number, kept = several.load(folder / "killed", killed.target)
    killed.restore(number, kept).go_on(number + 2)
    whole = several.Run(several.KILLED, mesh).go_on(number + 2)
    assert whole.state.inner_state.skipped == 1
    check_same(killed.report(), whole.report())
    # On one device, sums are of other pieces, and a moment may round to its neighbour:
    # nu of 4 bits moves the next step, of 0.01, by 2^-5 of it, mu of 8 bits by 2^-8.
    alone = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    single = several.Run(several.KILLED, alone)
    single.restore(*several.load(folder / "killed", single.target)).go_on(number + 2)
    for name, param in whole.params.items():
        np.testing.assert_allclose(single.params[name], param, atol=4e-4)


@pytest.mark.crossing
def test_the_example_goes_on_alone_where_two_were_killed(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "two_processes.py"
    start = tmp_path / "start"
    start.mkdir()
    folder = run_two(start, example, ["100"])
    alone = subprocess.run(
        [sys.executable, example, folder],
        check=True,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    assert alone.stdout.startswith("error 0.0") and (folder / "300").exists()
