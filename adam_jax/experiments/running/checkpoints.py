"""Checkpoints of a run, each verified by a digest; the one before where it fails."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

KEPT = 3  # checkpoints: with the newest two broken, a run can still go on
DIGEST = "digest"  # the file with the hash of all others
DRAFT = ".unfinished"  # ends the name of a checkpoint that is written or removed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a file
SPARE = 2**19  # bytes of Orbax's own files: 50 to 150 KB were seen


class Checkpoints:
    """Keep the last checkpoints of a run, each in a folder named by its step.

    Orbax writes the arrays. The folder has another name until all is in it, so that a
    kill leaves no half-written checkpoint.
    """

    def __init__(self, folder: Path):
        """Open the folder, or make it, and remove what a kill left unfinished in it."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        for draft in folder.glob(f"*{DRAFT}"):
            shutil.rmtree(draft)

    def steps(self) -> list[int]:
        """Give the steps that there is a checkpoint of, in order."""
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, or nothing if the disk is full; three are kept."""
        draft = self.folder / f"{step}{DRAFT}"
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        try:
            draft.mkdir()
            _reserve(draft / "reserve", size + SPARE)
            # Orbax takes absolute paths only.
            _checkpointer().save(draft.absolute() / "state", state)
            (draft / DIGEST).write_text(compute_digest(step, draft))
            draft.rename(self.folder / str(step))
        except Exception as error:  # what TensorStore raises is not always an OSError
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            raise _to_os_error(error) from error
        for old in self.steps()[:-KEPT]:
            self._remove(old)

    def restore(self, like: Any, warn: Callable[[str], None]) -> tuple[int, Any] | None:
        """Read the newest checkpoint that is whole, and remove those after it.

        Gives its step and its state, which is like another one; None if there is no
        checkpoint. If all are broken, of which it warns, they stay as they are, and so
        do those that are whole but hold another state than this run has.
        """
        broken = []
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            try:
                if (path / DIGEST).read_text() != compute_digest(step, path):
                    raise ValueError("its files are not as they were written")
            except Exception as error:  # a broken file may raise whatever it likes
                broken.append(step)
                warn(f"the checkpoint {path} is broken: {_in_one_line(error)}")
                continue
            try:
                state = _read_state(path / "state", like)
            except Exception as error:  # as above
                raise ValueError(
                    f"the checkpoint {path} is whole, but holds another state than this"
                    f" run has: {_in_one_line(error)}; if the problem has changed, put "
                    "it back as it was, or train again"
                ) from error
            for newer in broken:
                self._remove(newer)
            return step, state
        if broken:
            raise ValueError(f"no checkpoint in {self.folder} can be read; train again")
        return None

    def _remove(self, step: int) -> None:
        # Under its own name, one that is half removed would look like a broken one.
        draft = self.folder / f"{step}{DRAFT}"
        (self.folder / str(step)).rename(draft)
        shutil.rmtree(draft)


def compute_digest(step: int, folder: Path) -> str:
    """Hash a step, and the names and bytes of all files in a folder but the digest."""
    digest = hashlib.sha256(f"{step}".encode())
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in sorted(name.as_posix() for name in names):
        if name != DIGEST:
            content = (folder / name).read_bytes()
            digest.update(f"\n{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _reserve(path: Path, size: int) -> None:
    """Take so much room on the disk, and give it back: what is to come then fits.

    Where it does not, this is one plain error. Orbax would fail with pages of logs.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        path.unlink(missing_ok=True)


def _to_os_error(error: Exception) -> OSError:
    """Find out what TensorStore means, which gives the system's words only."""
    for code in FULL:
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code))
    return OSError(_in_one_line(error))


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _read_state(path: Path, like: Any) -> Any:
    # Orbax sees another shape only while it reads, and leaves threads that fail later.
    checkpointer, folder = _checkpointer(), path.absolute()
    metadata: Any = checkpointer.metadata(folder)
    stored = _list_shapes(metadata.item_metadata.tree)
    for name, shape in _list_shapes(like).items():
        if stored.get(name, shape) != shape:
            raise ValueError(f"{name} has the shape {stored[name]}, not {shape}")
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.StandardRestore(target)
    return checkpointer.restore(folder, args=arguments)


def _list_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Give the shape of each array by its path, but of keys, which Orbax unpacks."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
