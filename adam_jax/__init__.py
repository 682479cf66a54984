"""Adam, taken apart: composable stages for Optax, and the optimizers made of them.

>>> import optax, adam_jax
>>> tx = optax.chain(
...     adam_jax.scale_by_moments(b1=0.9, b2=0.999),
...     adam_jax.bias_correct(),
...     adam_jax.scale_by_lr(1e-3),
... )
"""

from importlib.metadata import version as _version

from adam_jax import fused
from adam_jax.family.both_moments import adam, adamw, nadam, nadamw, simplified_adam
from adam_jax.family.one_moment import adagrad, lion, rmsprop, sgd
from adam_jax.family.other_division import radam
from adam_jax.family.other_moments import adabelief, adamax, adamaxw, amsgrad, yogi
from adam_jax.family.table import OPTIMIZERS
from adam_jax.figures.definitions import (
    FIGURES,
    QUANTILES,
    Figure,
    Leaf,
    MissingError,
    Step,
    step_bound,
)
from adam_jax.figures.measuring import Measured, measure
from adam_jax.hyperparams import (
    Hyperparam,
    check_decay,
    check_non_negative,
    check_number,
    exact,
)
from adam_jax.moments.accumulators import (
    Accumulator,
    ema,
    infinity_norm,
    lion_average,
    residual_variance,
    total,
    trace,
    yogi_average,
)
from adam_jax.moments.blocks import EightBit, eight_bit
from adam_jax.moments.formats import Dense, Format, Noise, Stored, dense
from adam_jax.moments.moment import Gathered, Moment
from adam_jax.moments.sharing import Factored, MeanOver, factored, mean_over
from adam_jax.moments.storage import FORMATS, Storage
from adam_jax.stages.correction import (
    RunningMaxState,
    bias_correct,
    center,
    correct_step_size,
    running_max,
)
from adam_jax.stages.division import precondition, rectified_precondition
from adam_jax.stages.flow import Moments
from adam_jax.stages.gathering import MomentsState, scale_by_moments
from adam_jax.stages.updates import (
    Mask,
    ScheduledState,
    TraceState,
    add_decayed_weights,
    cast_to_params,
    scale_by_lr,
    scale_by_trace,
)
from adam_jax.states.adoption import Adopted, adopt_state, set_moments
from adam_jax.states.buffers import Packed, PackedState, unpack
from adam_jax.states.conversion import convert_state
from adam_jax.states.files import read_state, save_state
from adam_jax.states.foreign import ForeignState
from adam_jax.states.pytorch import read_torch
from adam_jax.states.reading import load_moments, read_moments
from adam_jax.states.shardings import state_shardings
from adam_jax.states.to_pytorch import write_torch
from adam_jax.wrappers.checking import checked
from adam_jax.wrappers.guards import (
    SkipState,
    check_skips,
    skip_nonfinite,
    skip_spikes,
)
from adam_jax.wrappers.packing import packed
from adam_jax.wrappers.recording import (
    RecordState,
    first_nonfinite,
    named_figures,
    record,
)
from adam_jax.wrappers.rounding import (
    CompensateParamsState,
    RoundToParamsState,
    compensate_params,
    round_to_params,
)
from adam_jax.wrappers.sharding import shard_state

__version__ = _version("adam_jax")

__all__ = [
    "FIGURES",
    "FORMATS",
    "OPTIMIZERS",
    "QUANTILES",
    "Accumulator",
    "Adopted",
    "CompensateParamsState",
    "Dense",
    "EightBit",
    "Factored",
    "Figure",
    "ForeignState",
    "Format",
    "Gathered",
    "Hyperparam",
    "Leaf",
    "Mask",
    "MeanOver",
    "Measured",
    "MissingError",
    "Moment",
    "Moments",
    "MomentsState",
    "Noise",
    "Packed",
    "PackedState",
    "RecordState",
    "RoundToParamsState",
    "RunningMaxState",
    "ScheduledState",
    "SkipState",
    "Step",
    "Storage",
    "Stored",
    "TraceState",
    "__version__",
    "adabelief",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "add_decayed_weights",
    "adopt_state",
    "amsgrad",
    "bias_correct",
    "cast_to_params",
    "center",
    "check_decay",
    "check_non_negative",
    "check_number",
    "check_skips",
    "checked",
    "compensate_params",
    "convert_state",
    "correct_step_size",
    "dense",
    "eight_bit",
    "ema",
    "exact",
    "factored",
    "first_nonfinite",
    "fused",
    "infinity_norm",
    "lion",
    "lion_average",
    "load_moments",
    "mean_over",
    "measure",
    "nadam",
    "nadamw",
    "named_figures",
    "packed",
    "precondition",
    "radam",
    "read_moments",
    "read_state",
    "read_torch",
    "record",
    "rectified_precondition",
    "residual_variance",
    "rmsprop",
    "round_to_params",
    "running_max",
    "save_state",
    "scale_by_lr",
    "scale_by_moments",
    "scale_by_trace",
    "set_moments",
    "sgd",
    "shard_state",
    "simplified_adam",
    "skip_nonfinite",
    "skip_spikes",
    "state_shardings",
    "step_bound",
    "total",
    "trace",
    "unpack",
    "write_torch",
    "yogi",
    "yogi_average",
]
