"""Moments from other frameworks, in a form that `adopt_state` continues."""

from typing import NamedTuple

import numpy as np


class ForeignState(NamedTuple):
    """The moments of parameters that have taken the same number of steps.

    Attributes:
      count: the number of steps, or None if the old state does not say.
      mu: first moments by the path of the parameter, or None.
      nu: second moments, likewise.
      trace: the buffers of momentum, likewise.
      raw_nu_max: the maxima of AMSGrad, likewise, of moments before their correction.
        No optimizer is given them.
      nu_max: what an optimizer with a maximum is given; `read_torch` leaves it None.
    """

    count: int | None = None
    mu: dict[str, np.ndarray] | None = None
    nu: dict[str, np.ndarray] | None = None
    trace: dict[str, np.ndarray] | None = None
    raw_nu_max: dict[str, np.ndarray] | None = None
    nu_max: dict[str, np.ndarray] | None = None
