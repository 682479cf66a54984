"""Adam, taken apart: composable stages for Optax, and the optimizers they make.

>>> import optax, adam_jax
>>> tx = optax.chain(
...     adam_jax.scale_by_moments(b1=0.9, b2=0.999),
...     adam_jax.bias_correct(),
...     adam_jax.scale_by_lr(1e-3),
... )
"""

from adam_jax import fused as fused
from adam_jax.accumulators import Accumulator as Accumulator
from adam_jax.accumulators import ema as ema
from adam_jax.accumulators import infinity_norm as infinity_norm
from adam_jax.accumulators import lion_average as lion_average
from adam_jax.accumulators import residual_variance as residual_variance
from adam_jax.accumulators import total as total
from adam_jax.accumulators import trace as trace
from adam_jax.accumulators import yogi_average as yogi_average
from adam_jax.ancestors import adagrad as adagrad
from adam_jax.ancestors import rmsprop as rmsprop
from adam_jax.ancestors import sgd as sgd
from adam_jax.conversion import convert_state as convert_state
from adam_jax.conversion import load_moments as load_moments
from adam_jax.diagnostics import first_nonfinite as first_nonfinite
from adam_jax.diagnostics import named_figures as named_figures
from adam_jax.diagnostics import record as record
from adam_jax.figures import FIGURES as FIGURES
from adam_jax.figures import QUANTILES as QUANTILES
from adam_jax.figures import Figure as Figure
from adam_jax.figures import Leaf as Leaf
from adam_jax.figures import Measured as Measured
from adam_jax.figures import Step as Step
from adam_jax.figures import measure as measure
from adam_jax.figures import step_bound as step_bound
from adam_jax.followups import adabelief as adabelief
from adam_jax.followups import adamax as adamax
from adam_jax.followups import adamaxw as adamaxw
from adam_jax.followups import amsgrad as amsgrad
from adam_jax.followups import lion as lion
from adam_jax.followups import radam as radam
from adam_jax.followups import yogi as yogi
from adam_jax.formats import FORMATS as FORMATS
from adam_jax.formats import Format as Format
from adam_jax.formats import Stored as Stored
from adam_jax.formats import dense as dense
from adam_jax.formats import eight_bit as eight_bit
from adam_jax.guards import check_skips as check_skips
from adam_jax.guards import checked as checked
from adam_jax.guards import skip_nonfinite as skip_nonfinite
from adam_jax.guards import skip_spikes as skip_spikes
from adam_jax.hyperparams import check_decay as check_decay
from adam_jax.hyperparams import check_non_negative as check_non_negative
from adam_jax.hyperparams import exact as exact
from adam_jax.optimizers import OPTIMIZERS as OPTIMIZERS
from adam_jax.optimizers import adam as adam
from adam_jax.optimizers import adamw as adamw
from adam_jax.optimizers import nadam as nadam
from adam_jax.optimizers import nadamw as nadamw
from adam_jax.optimizers import simplified_adam as simplified_adam
from adam_jax.packing import packed as packed
from adam_jax.packing import unpack as unpack
from adam_jax.rounding import compensate_params as compensate_params
from adam_jax.rounding import round_to_params as round_to_params
from adam_jax.transforms import Moments as Moments
from adam_jax.transforms import MomentsState as MomentsState
from adam_jax.transforms import bias_correct as bias_correct
from adam_jax.transforms import center as center
from adam_jax.transforms import correct_step_size as correct_step_size
from adam_jax.transforms import running_max as running_max
from adam_jax.transforms import scale_by_moments as scale_by_moments
from adam_jax.updates import add_decayed_weights as add_decayed_weights
from adam_jax.updates import cast_to_params as cast_to_params
from adam_jax.updates import precondition as precondition
from adam_jax.updates import rectified_precondition as rectified_precondition
from adam_jax.updates import scale_by_lr as scale_by_lr
from adam_jax.updates import scale_by_trace as scale_by_trace
