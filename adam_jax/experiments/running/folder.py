"""The folder of a run, written so that no kill leaves it unusable; how to go on."""

import contextlib
import fcntl
import itertools
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue] (made when it is imported)
)
from tensorboardX.summary import scalar

from adam_jax.experiments.machine import record_environment
from adam_jax.experiments.metrics import (
    METRICS,
    Epoch,
    from_json,
    parse_lines,
    to_json,
    to_scalars,
)
from adam_jax.experiments.running.checkpoints import FULL, Checkpoints
from adam_jax.experiments.settings.config import TaskConfig

CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"


class Journal:
    """A file of entries, a line of JSON each, that one process at a time writes to."""

    def __init__(self, path: Path, parse: Callable[[str], Any]):
        """Open a file, or make it; refuse one that another process has."""
        # Not buffered: what is written is seen at once, and fails at once.
        self._file = path.open("a+b", buffering=0)
        self.entries: list[Any] = []  # up to the first line that is none
        try:
            _lock(self._file)
            self._file.seek(0)
            text = self._file.read()
        except BaseException:
            self.close()
            raise
        with contextlib.suppress(ValueError):
            for entry in parse_lines(text, parse):
                self.entries.append(entry)

    def cut(self, count: int) -> None:
        """Forget all but the first entries, and what is no entry."""
        del self.entries[count:]
        self._file.seek(0)
        lines = self._file.readlines()[: len(self.entries)]
        self._file.truncate(sum(map(len, lines)))

    def add(self, *entries: Any) -> None:
        """Add entries; where they cannot be written, no part of them is left."""
        before = os.fstat(self._file.fileno()).st_size
        lines = "".join(f"{to_json(entry)}\n" for entry in entries).encode()
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
        except OSError:
            self._file.truncate(before)
            raise
        self.entries += entries

    def sync(self) -> None:
        """Make sure that the entries are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let another process have the file."""
        self._file.close()


class RunFolder:
    """Write the files of a run; one process at a time can."""

    def __init__(self, path: Path):
        """Open a folder, be it that of a new run or of an earlier one."""
        self.path = path
        self._metrics = Journal(path / METRICS, from_json)
        self._events: EventsWriter | None = None
        try:
            self.checkpoints = Checkpoints(path / CHECKPOINTS)
        except BaseException:
            self._metrics.close()
            raise

    @property
    def epochs(self) -> list[Epoch]:
        """Give the epochs in its metrics.jsonl."""
        return self._metrics.entries

    def rewind(self, step: int) -> None:
        """Forget the epochs that end after a step, and start the event file anew."""
        self._metrics.cut(sum(epoch.step <= step for epoch in self.epochs))
        for old in self.path.glob("events.out.tfevents.*"):
            old.unlink()
        self._events = EventsWriter(str(self.path / "events"))
        for epoch in self.epochs:
            write_events(self._events, epoch)

    def add(self, epoch: Epoch) -> None:
        """Add an epoch to metrics.jsonl, and to the event file for TensorBoard."""
        self._metrics.add(epoch)
        if self._events:
            write_events(self._events, epoch)

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, once the epochs before it are sure to be on the disk."""
        self._metrics.sync()
        self.checkpoints.save(step, state)

    def close(self) -> None:
        """Let another process have the folder."""
        try:
            if self._events:
                self._events.close()
        finally:
            self._metrics.close()


def _lock(file: BinaryIO) -> None:
    # The system frees such a lock, however the process ends.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{Path(file.name).parent} is in use: another process trains it; wait for "
            "that to end"
        ) from error
    except OSError:
        pass  # a file system without locks


@contextlib.contextmanager
def start_folder(
    config: TaskConfig, text: str, command: str, kept: str
) -> Iterator[Path]:
    """Make the folder of a run or a study, with its config; as `explained` says."""
    path = make_run_folder(Path(config.runs_dir), config.run_name)
    with explained(path, command, kept):
        replace_file(path / CONFIG, lambda file: file.write(text.encode()))
        record_environment(path)
        yield path


def make_run_folder(runs_dir: Path, name: str) -> Path:
    """Make the first folder that is still free of name, name-2, name-3, ..."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    for folder in (runs_dir / name for name in names):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable: there is always a next number")


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside its place first: what is there is whole, old or new."""
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def reopened(opener: Callable[[Path], Any], path: Path) -> Iterator[Any]:
    """Open what is to be resumed; if that leads to an error, close it again."""
    try:
        opened = opener(path)
    except OSError as error:
        raise ValueError(f"cannot go on with {path}: {error.strerror}") from error
    try:
        yield opened
    except BaseException:
        opened.close()
        raise


@contextlib.contextmanager
def explained(path: Path, command: str, kept: str = "*") -> Iterator[None]:
    """Say what is wrong with the disk, and by which command to go on with a folder.

    A folder in which nothing matches the pattern `kept` is removed.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        if not any(path.glob(kept)):
            shutil.rmtree(path, ignore_errors=True)
            raise OSError(f"{path}: {cause}; nothing is kept of this run") from error
        cure = "free some space" if error.errno in FULL else "mend that"
        how = tell_command(path, command)
        raise OSError(f"{path}: {cause}; {cure}, and {how}") from error


def tell_command(path: Path, command: str) -> str:
    """Say by which command, as in "adam-jax train", to go on with a folder."""
    return f"go on with: {command} --resume {shlex.quote(str(path))}"


def write_events(events: EventsWriter, epoch: Epoch) -> None:
    """Write the numbers of an epoch for TensorBoard, but for those not finite."""
    for name, value in to_scalars(epoch).items():
        if math.isfinite(value):
            content = scalar(name, value)
            event = Event(wall_time=time.time(), step=epoch.step, summary=content)
            events.write_event(event)
    events.flush()


def save_params(path: Path, params: Any) -> None:
    """Write the parameters as one NumPy archive, each under its path in the model."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name = jax.tree_util.keystr
    # NumPy's archives know no bfloat16; float32 holds its values.
    arrays: dict[str, Any] = {
        name(key, simple=True, separator="."): np.asarray(leaf, np.float32)
        for key, leaf in leaves
    }
    replace_file(path, lambda file: np.savez(file, **arrays))
