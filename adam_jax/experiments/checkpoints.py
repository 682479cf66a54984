"""Checkpoints of a run, each verified by a digest; the one before where it fails."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

KEPT = 3  # checkpoints: with the newest two broken, a run can still go on


class Checkpoints:
    """Keep the last checkpoints of a run, each in a folder named by its step.

    Orbax writes them under another name first, so that a kill leaves none half-written.
    """

    def __init__(self, folder: Path):
        """Open the folder, or make it, and remove what a kill left unfinished in it.

        Raises:
          OSError: if it cannot be written to.
        """
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # one that is broken must not end this
            save_root_metadata=False,
        )
        # Orbax takes absolute paths only.
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def steps(self) -> list[int]:
        """Give the steps that there is a checkpoint of, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint; the newest three are kept.

        Args:
          step: Steps since the start of the run.
          state: A pytree of arrays.

        Raises:
          OSError: if it cannot be written. Nothing is left of it then.
        """
        progress = {"step": step, "digest": compute_digest(step, state)}
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(progress),
        )
        try:
            self._manager.save(step, args=content)
        except Exception as error:  # what TensorStore raises is not always an OSError
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            raise OSError(_in_one_line(error)) from error

    def restore(self, like: Any, warn: Callable[[str], None]) -> tuple[int, Any] | None:
        """Read the newest checkpoint that is whole, and remove those after it.

        Args:
          like: A pytree of arrays: the structure, shapes and dtypes that are expected.
          warn: Takes a sentence about each checkpoint that is broken.

        Returns:
          The step and the state; None if there is no checkpoint.

        Raises:
          ValueError: if there are some, but all are broken. They stay as they are.
        """
        broken = []
        for step in reversed(self.steps()):
            try:
                state = self._restore(step, like)
            except Exception as error:  # a broken file may raise whatever it likes
                cause = _in_one_line(error)
                broken.append(step)
                warn(f"the checkpoint {self.folder / str(step)} is broken: {cause}")
                continue
            for newer in broken:
                self._manager.delete(newer)
            return step, state
        if broken:
            raise ValueError(f"no checkpoint in {self.folder} can be read")
        return None

    def _restore(self, step: int, like: Any) -> Any:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        found: Any = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target),
                progress=ocp.args.JsonRestore(),
            ),
        )
        expected = {"step": step, "digest": compute_digest(step, found.state)}
        if found.progress != expected:
            raise ValueError("its content does not match its digest")
        return found.state

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()


def compute_digest(step: int, state: Any) -> str:
    """Hash a step, and the path, dtype, shape and bytes of every leaf of a pytree."""
    digest = hashlib.sha256(str(step).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
