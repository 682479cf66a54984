"""What adam_jax exports, and where each name is defined."""

from . import fused
from .coordinates.changing import WithinState, within
from .coordinates.interface import Coordinates
from .coordinates.kronecker import eigenbasis, inverse_roots
from .coordinates.projection import subspace
from .family.agreeing_signs import cautious_adamw, cautious_decay_adamw, grams
from .family.both_moments import adam, adamw, nadam, nadamw, simplified_adam
from .family.bounded_steps import adabound, adamod, stable_adamw
from .family.factored_moments import adafactor, came
from .family.heirs_of_adagrad import adadelta, madgrad
from .family.iterates import (
    adam_hyperball,
    lookahead,
    schedule_free_adamw,
    schedule_free_radam,
)
from .family.matrices import galore_adamw, shampoo, soap
from .family.mixed_averages import (
    ademamix,
    optimistic_adam,
    qhadam,
    simplified_ademamix,
)
from .family.one_moment import adagrad, lion, rmsprop, sgd
from .family.other_division import adam_atan2, diffgrad, padam, radam
from .family.other_gradients import grokfast_adamw, mars_adamw, stable_spam
from .family.other_moments import adabelief, adamax, adamaxw, amsgrad, yogi
from .family.other_order import acprop, adopt, laprop
from .family.porting import assert_follows
from .family.several_averages import adan, adapnm, aggmo
from .family.shared_moments import adam_mini, novograd, rowwise_adagrad, sm3
from .family.signs import signum, tiger
from .family.singular_values import adamuon, muon, normuon
from .family.step_sizes import prodigy, swats
from .family.table import OPTIMIZERS
from .family.trust_ratios import lamb, lars
from .figures.definitions import (
    FIGURES,
    QUANTILES,
    Figure,
    Step,
    step_bound,
)
from .figures.leaves import Leaf, MissingError
from .figures.measuring import Measured, measure
from .hyperparams import (
    Hyperparam,
    check_between,
    check_decay,
    check_non_negative,
    check_number,
    derived,
    exact,
)
from .measures import largest, norm
from .moments.accumulators import (
    Accumulator,
    ema,
    infinity_norm,
    lion_average,
    residual_variance,
    total,
    trace,
    yogi_average,
)
from .moments.blocks import EightBit, eight_bit
from .moments.formats import Dense, Format, Stored, dense
from .moments.maxima import AxisMaxima, axis_maxima
from .moments.moment import Gathered, Moment
from .moments.noise import Noise
from .moments.sharing import Factored, MeanOver, factored, mean_over
from .moments.squares import floored_average, rising_decay, squared_norm
from .moments.storage import FORMATS, Storage
from .moments.variations import (
    alternating,
    average_from_first,
    delayed,
    difference,
    mixture,
    restarted,
)
from .stages.branching import BranchesState, add_branches, take_gradients
from .stages.correction import (
    RunningMaxState,
    bias_correct,
    center,
    correct_step_size,
    running_max,
    temper,
)
from .stages.distance import DistanceState, scale_by_distance
from .stages.division import (
    atan2_precondition,
    floor_nu,
    precondition,
    rectification,
    rectified_precondition,
)
from .stages.flow import Moments
from .stages.gathering import MomentsState, scale_by_moments
from .stages.holding import (
    NuTraceState,
    TraceState,
    average_updates,
    hold,
    scale_by_friction,
    scale_by_past_updates,
    scale_by_trace,
)
from .stages.iterates import (
    LookaheadState,
    RadiusState,
    ScheduleFreeState,
    keep_radius,
    schedule_free,
    step_back,
)
from .stages.orthogonal import on_matrices, orthogonalize, scale_by_shape, set_rms
from .stages.switching import SwitchState, switch_to_sgd
from .stages.updates import (
    Mask,
    ScheduledState,
    add_decayed_weights,
    cast_to_params,
    clip_elements,
    scale_by_lr,
)
from .states.adoption import Adopted, adopt_state, set_moments
from .states.buffers import Packed, PackedState, unpack
from .states.conversion import convert_state
from .states.files import read_state, save_state
from .states.foreign import ForeignState
from .states.keras import read_keras, write_keras
from .states.pytorch import read_torch
from .states.reading import load_moments, read_moments
from .states.shardings import state_shardings
from .states.to_pytorch import write_torch
from .wrappers.checking import checked
from .wrappers.guards import SkipState, check_skips, skip_nonfinite, skip_spikes
from .wrappers.packing import packed
from .wrappers.recording import RecordState, first_nonfinite, named_figures, record
from .wrappers.rounding import (
    CompensateParamsState,
    RoundToParamsState,
    compensate_params,
    round_to_params,
)
from .wrappers.sharding import in_shard_map, shard_state

__version__: str
from .moments.growing import growing_total
from .stages.agreement import add_cautious_decay, keep_agreeing, take_sign_of_gradient
from .stages.bounding import bound_by_average, bounded_precondition
from .stages.dual_averaging import StartState, average_from_start
from .stages.leaves import (
    adjust_leaves,
    clip_rms,
    divide_by_rms,
    scale_by_param_rms,
    scale_by_trust_ratio,
    scale_to_params,
)

__all__ = [
    "FIGURES",
    "FORMATS",
    "OPTIMIZERS",
    "QUANTILES",
    "Accumulator",
    "Adopted",
    "AxisMaxima",
    "BranchesState",
    "CompensateParamsState",
    "Coordinates",
    "Dense",
    "DistanceState",
    "EightBit",
    "Factored",
    "Figure",
    "ForeignState",
    "Format",
    "Gathered",
    "Hyperparam",
    "Leaf",
    "LookaheadState",
    "Mask",
    "MeanOver",
    "Measured",
    "MissingError",
    "Moment",
    "Moments",
    "MomentsState",
    "Noise",
    "NuTraceState",
    "Packed",
    "PackedState",
    "RadiusState",
    "RecordState",
    "RoundToParamsState",
    "RunningMaxState",
    "ScheduleFreeState",
    "ScheduledState",
    "SkipState",
    "StartState",
    "Step",
    "Storage",
    "Stored",
    "SwitchState",
    "TraceState",
    "WithinState",
    "acprop",
    "adabelief",
    "adabound",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_atan2",
    "adam_hyperball",
    "adam_mini",
    "adamax",
    "adamaxw",
    "adamod",
    "adamuon",
    "adamw",
    "adan",
    "adapnm",
    "add_branches",
    "add_cautious_decay",
    "add_decayed_weights",
    "ademamix",
    "adjust_leaves",
    "adopt",
    "adopt_state",
    "aggmo",
    "alternating",
    "amsgrad",
    "assert_follows",
    "atan2_precondition",
    "average_from_first",
    "average_from_start",
    "average_updates",
    "axis_maxima",
    "bias_correct",
    "bound_by_average",
    "bounded_precondition",
    "came",
    "cast_to_params",
    "cautious_adamw",
    "cautious_decay_adamw",
    "center",
    "check_between",
    "check_decay",
    "check_non_negative",
    "check_number",
    "check_skips",
    "checked",
    "clip_elements",
    "clip_rms",
    "compensate_params",
    "convert_state",
    "correct_step_size",
    "delayed",
    "dense",
    "derived",
    "difference",
    "diffgrad",
    "divide_by_rms",
    "eigenbasis",
    "eight_bit",
    "ema",
    "exact",
    "factored",
    "first_nonfinite",
    "floor_nu",
    "floored_average",
    "fused",
    "galore_adamw",
    "grams",
    "grokfast_adamw",
    "growing_total",
    "hold",
    "in_shard_map",
    "infinity_norm",
    "inverse_roots",
    "keep_agreeing",
    "keep_radius",
    "lamb",
    "laprop",
    "largest",
    "lars",
    "lion",
    "lion_average",
    "load_moments",
    "lookahead",
    "madgrad",
    "mars_adamw",
    "mean_over",
    "measure",
    "mixture",
    "muon",
    "nadam",
    "nadamw",
    "named_figures",
    "norm",
    "normuon",
    "novograd",
    "on_matrices",
    "optimistic_adam",
    "orthogonalize",
    "packed",
    "padam",
    "precondition",
    "prodigy",
    "qhadam",
    "radam",
    "read_keras",
    "read_moments",
    "read_state",
    "read_torch",
    "record",
    "rectification",
    "rectified_precondition",
    "residual_variance",
    "restarted",
    "rising_decay",
    "rmsprop",
    "round_to_params",
    "rowwise_adagrad",
    "running_max",
    "save_state",
    "scale_by_distance",
    "scale_by_friction",
    "scale_by_lr",
    "scale_by_moments",
    "scale_by_param_rms",
    "scale_by_past_updates",
    "scale_by_shape",
    "scale_by_trace",
    "scale_by_trust_ratio",
    "scale_to_params",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_radam",
    "set_moments",
    "set_rms",
    "sgd",
    "shampoo",
    "shard_state",
    "signum",
    "simplified_adam",
    "simplified_ademamix",
    "skip_nonfinite",
    "skip_spikes",
    "sm3",
    "soap",
    "squared_norm",
    "stable_adamw",
    "stable_spam",
    "state_shardings",
    "step_back",
    "step_bound",
    "subspace",
    "swats",
    "switch_to_sgd",
    "take_gradients",
    "take_sign_of_gradient",
    "temper",
    "tiger",
    "total",
    "trace",
    "unpack",
    "within",
    "write_keras",
    "write_torch",
    "yogi",
    "yogi_average",
]
