"""The table of all optimizers."""

from collections.abc import Callable

import optax

from adam_jax.family.agreeing_signs import cautious_adamw, cautious_decay_adamw, grams
from adam_jax.family.both_moments import adam, adamw, nadam, nadamw, simplified_adam
from adam_jax.family.bounded_steps import adabound, adamod, stable_adamw
from adam_jax.family.factored_moments import adafactor, came
from adam_jax.family.heirs_of_adagrad import adadelta, madgrad
from adam_jax.family.iterates import (
    adam_hyperball,
    lookahead,
    schedule_free_adamw,
    schedule_free_radam,
)
from adam_jax.family.matrices import galore_adamw, shampoo, soap
from adam_jax.family.mixed_averages import (
    ademamix,
    optimistic_adam,
    qhadam,
    simplified_ademamix,
)
from adam_jax.family.one_moment import adagrad, lion, rmsprop, sgd
from adam_jax.family.other_division import adam_atan2, diffgrad, padam, radam
from adam_jax.family.other_gradients import grokfast_adamw, mars_adamw, stable_spam
from adam_jax.family.other_moments import adabelief, adamax, adamaxw, amsgrad, yogi
from adam_jax.family.other_order import acprop, adopt, laprop
from adam_jax.family.several_averages import adan, adapnm, aggmo
from adam_jax.family.shared_moments import adam_mini, novograd, rowwise_adagrad, sm3
from adam_jax.family.signs import signum, tiger
from adam_jax.family.singular_values import adamuon, muon, normuon
from adam_jax.family.step_sizes import prodigy, swats
from adam_jax.family.trust_ratios import lamb, lars

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "simplified_adam": simplified_adam,
    "adamw": adamw,
    "nadam": nadam,
    "nadamw": nadamw,
    "amsgrad": amsgrad,
    "adamax": adamax,
    "adamaxw": adamaxw,
    "adabelief": adabelief,
    "radam": radam,
    "yogi": yogi,
    "lion": lion,
    "signum": signum,
    "tiger": tiger,
    "aggmo": aggmo,
    "lars": lars,
    "muon": muon,
    "normuon": normuon,
    "adamuon": adamuon,
    "rowwise_adagrad": rowwise_adagrad,
    "sm3": sm3,
    "madgrad": madgrad,
    "shampoo": shampoo,
    "adadelta": adadelta,
    "padam": padam,
    "adapnm": adapnm,
    "acprop": acprop,
    "laprop": laprop,
    "novograd": novograd,
    "adopt": adopt,
    "qhadam": qhadam,
    "adam_atan2": adam_atan2,
    "diffgrad": diffgrad,
    "adabound": adabound,
    "swats": swats,
    "adamod": adamod,
    "adan": adan,
    "optimistic_adam": optimistic_adam,
    "adafactor": adafactor,
    "came": came,
    "adam_mini": adam_mini,
    "stable_spam": stable_spam,
    "lookahead": lookahead,
    "prodigy": prodigy,
    "adam_hyperball": adam_hyperball,
    "grokfast_adamw": grokfast_adamw,
    "mars_adamw": mars_adamw,
    "ademamix": ademamix,
    "simplified_ademamix": simplified_ademamix,
    "stable_adamw": stable_adamw,
    "lamb": lamb,
    "cautious_adamw": cautious_adamw,
    "grams": grams,
    "cautious_decay_adamw": cautious_decay_adamw,
    "schedule_free_adamw": schedule_free_adamw,
    "schedule_free_radam": schedule_free_radam,
    "soap": soap,
    "galore_adamw": galore_adamw,
}
"""Every optimizer by name: those that the command line offers and the tests cover."""

PARENTS: dict[str, str] = {
    "signum": "sgd",
    "lion": "signum",
    "tiger": "signum",
    "aggmo": "sgd",
    "lars": "sgd",
    "muon": "sgd",
    "normuon": "muon",
    "adamuon": "muon",
    "adagrad": "sgd",
    "rowwise_adagrad": "adagrad",
    "sm3": "adagrad",
    "madgrad": "adagrad",
    "shampoo": "adagrad",
    "rmsprop": "adagrad",
    "adadelta": "rmsprop",
    "adam": "rmsprop",
    "simplified_adam": "adam",
    "nadam": "adam",
    "amsgrad": "adam",
    "padam": "amsgrad",
    "adapnm": "amsgrad",
    "adamax": "adam",
    "adamaxw": "adamax",
    "adabelief": "adam",
    "acprop": "adabelief",
    "radam": "adam",
    "yogi": "adam",
    "laprop": "adam",
    "novograd": "laprop",
    "adopt": "laprop",
    "qhadam": "adam",
    "adam_atan2": "adam",
    "diffgrad": "adam",
    "adabound": "adam",
    "swats": "adam",
    "adamod": "adam",
    "adan": "nadam",
    "optimistic_adam": "adam",
    "adafactor": "rmsprop",
    "came": "adafactor",
    "adam_mini": "adam",
    "stable_spam": "adam",
    "lookahead": "adam",
    "prodigy": "adam",
    "adam_hyperball": "adam",
    "adamw": "adam",
    "nadamw": "adamw",
    "grokfast_adamw": "adamw",
    "mars_adamw": "adamw",
    "ademamix": "adamw",
    "simplified_ademamix": "ademamix",
    "stable_adamw": "adamw",
    "lamb": "adamw",
    "cautious_adamw": "adamw",
    "grams": "cautious_adamw",
    "cautious_decay_adamw": "adamw",
    "schedule_free_adamw": "adamw",
    "schedule_free_radam": "radam",
    "soap": "adamw",
    "galore_adamw": "adamw",
}
"""Which other optimizer each one changes; `sgd` is the root."""
