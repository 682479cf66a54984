"""The options of commands; the docstring of each class is the help of its command."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from adam_jax.experiments.settings.config import TrainConfig


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """Train a model on data that come along, or a problem of your own.

    Examples:
      adam-jax train --config digits_mlp
      adam-jax train --config digits_mlp --optimizer.learning_rate 3e-4
      adam-jax train --arguments.model cnn --arguments.widths "[32, 64]"
      adam-jax train --problem mnist --optimizer.name lion
      adam-jax train --resume runs/digits_mlp
      adam-jax inspect runs/digits_mlp
    """


@dataclass(frozen=True)
class InspectOptions:
    """Print the figures of a run over its epochs, and by parameter group at its end.

    Attributes:
      run: Folder of the run, as in runs/NAME.
      json: Print JSON, with null for NaN and infinity.

    Examples:
      adam-jax inspect runs/digits_mlp
      adam-jax inspect runs/digits_mlp --json | jq '.epochs[-1].figures.update_ratio'

    docs/diagnostics.md tells how to read the figures.
    """

    run: Path
    _: KW_ONLY
    json: bool = False


@dataclass(frozen=True)
class ReportOptions:
    """Make one web page of a run, of several side by side, or of a study.

    Attributes:
      runs: Folders of runs, or the one of a study.
      out: File to write; by default report.html in the folder of the run, or in the one
        that all runs are in.

    Examples:
      adam-jax report runs/digits_mlp
      adam-jax report runs/digits_mlp runs/digits_mlp_adamw --out adam_or_adamw.html

    docs/diagnostics.md tells how to read the figures.
    """

    runs: tuple[Path, ...]
    _: KW_ONLY
    out: Path | None = None


@dataclass(frozen=True)
class BenchOptions:
    """Time a step of AdamW beside optax.adamw, in one process, or count what it moves.

    Attributes:
      sizes: Parameters (4096, 2^12), a shape (64,2^6), leaves of one size (300x4096,
        12x64,64), or gpt2. By default 2^12 2^16 2^20 2^22 2^24 2^26 150x2^17 300x4096
        1000x64 gpt2, if compiled 16384,8192.
      formats: Of the moments; in pure ones parameters and gradients are bfloat16:
        float32, bfloat16, 8bit, pure_bfloat16, pure_8bit, mu_bfloat16, pure_float32.
        By default the first 5, if compiled all.
      candidates: As listed below. By default all, the wrappers (the last ones) at two
        sizes only; if compiled optax, adamw, fused_step, compensated, skip_nonfinite,
        skip_spikes, record_one, record_default.
      compiled: Count bytes, run nothing: compile for v5e, v5p, v6e, h100, none of which
        need be here. With its chips, as in v5e:4x4, leaves are cut over all of them.
      base: Measure beside this candidate; by default optax, or its like.
      repeats: Pairs of turns, 25 by default; slow ones stop after 10 seconds.
      quick: Two tiny sizes, two formats and three pairs, to see that it works.
      json: Write figures there.
      picture: Draw there: .png, .svg or .pdf.

    Examples:
      adam-jax bench --quick
      adam-jax bench --json bench.json --picture bench.png
      adam-jax bench --sizes 2^24 150x2^17 gpt2 --candidates adamw fused_step
      adam-jax bench --sizes 2^24 --candidates fused_step --base torch
      adam-jax bench --compiled v5e --formats float32 8bit
    """

    _: KW_ONLY
    sizes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    compiled: str | None = None
    base: str | None = None
    repeats: int | None = None
    quick: bool = False
    json: Path | None = None
    picture: Path | None = None


@dataclass(frozen=True)
class FamilyOptions:
    """Print the family tree of the optimizers, or two of their chains side by side.

    Attributes:
      names: One optimizer, to be compared with the one that it changes, or two.

    Examples:
      adam-jax family                                   # every optimizer, as a tree
      adam-jax family soap                              # its chain beside its parent's
      adam-jax family adopt soap

    docs/family.md has the tree as a picture, and what each is good for.
    """

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewOptions:
    """Write a Python file that makes a problem of your own: data, model, loss.

    It trains as it is; put yours in their place.

    Attributes:
      file: The file to write, as in my_problem.py.

    Examples:
      adam-jax new my_problem.py
      adam-jax train --problem my_problem.py --epochs 10
      adam-jax sweep --config which_optimizer --problem my_problem.py
      adam-jax train --problem my_package.my_module:make --arguments.width 64

    docs/own_problem.md tells what such a file must give.
    """

    file: Path


@dataclass(frozen=True)
class ConfigsOptions:
    """List the configs that --config takes by name, or print one.

    Attributes:
      name: The one to print.

    Examples:
      adam-jax configs
      adam-jax train --config digits_mlp
      adam-jax configs digits_mlp > mine.toml
    """

    name: str | None = None


@dataclass(frozen=True)
class ConvertOptions:
    """Print what is in the file of an optimizer state; write it as another file.

    Attributes:
      old: File to read: of adam_jax.save_state, of torch.save, of model.save in Keras,
        of flax.serialization.to_bytes, or the folder of an Orbax checkpoint.
      new: File to write.
      to: What to write: float32, bfloat16 or 8bit, for a file of save_state that
        stores moments so; same, for one that stores them as they are, which is the
        default; torch; keras; optax or, say, optax.adamw, for a file of
        flax.serialization.
      like: For torch and keras: file of the optimizer, or of the model, that is to go
        on, as it is before its first step.
      names: For torch and keras: file with the paths of the parameters, such as
        dense/kernel, in the order of the optimizer there, one a line. By default for
        torch: their names there, if the optimizer was given any.
      turned: For torch: pattern of the paths whose axes are (out, in, ...) there and
        (..., in, out) here, such as '*kernel'.

    Examples:
      adam-jax convert adam.safetensors                 # what is in it
      adam-jax convert adam.safetensors small.safetensors --to 8bit
      adam-jax convert orbax_folder adam.safetensors
      adam-jax convert adam.safetensors adam.msgpack --to optax.adamw
      adam-jax convert old.pt adam.safetensors --names names.txt --turned '*kernel'
      adam-jax convert a.safetensors new.pt --to torch --like fresh.pt --names names.txt
      adam-jax convert old.keras adam.safetensors --names names.txt

    docs/states.md says how programs write and read these files.
    """

    old: Path
    new: Path | None = None
    _: KW_ONLY
    to: str = "same"
    like: Path | None = None
    names: Path | None = None
    turned: str | None = None
