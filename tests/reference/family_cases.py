"""The cases of make_family.py: one call of ours, and how another library makes it."""

LR = 0.01
STEPS = 200
TINY = 1e-30  # an eps that does not show, where two definitions place it differently
ADAM = {"b1": 0.9, "b2": 0.999}
FAST = {"b1": 0.8, "b2": 0.95}
TINIED = FAST | {"eps": TINY}
VISIBLE = FAST | {"eps": 1e-3}

# Reasons that several cases share.
HIDDEN = "adds 1e-15 to the raw nu and eps to its root before the correction: both tiny"
RAW_EPS = "adds eps to the root before the correction: its eps undoes that"
CAST = "its casts to fewer digits are undone"
FROM_FIRST = (
    "starts the slow average at the first gradient, which is 0 here; takes "
    "max(root, eps): tiny here"
)
INSIDE = (
    "has 1 / (1 - b1^t) inside the minimum or clip: its rate undoes that, and its "
    "steps are multiplied by it; "
) + RAW_EPS

CASES = {}


def case(
    name,
    optimizer,
    leaf,
    where,
    ours,
    theirs=None,
    *,
    names=None,
    undo=(),
    wide=False,
    rtol=1e-9,
    reason="",
):
    """Add a case.

    name: its name.
    optimizer, ours: the call of ours, in our names. The rate is LR unless it is given.
    leaf: on which gradients, see make_leaves in make_family.py.
    where: what makes the other one, "module:Class" or "special:function".
    theirs: arguments that it takes beside those of `ours`.
    names: {our name: their name} of those of `ours`, None for those that it does not
        take. Betas and the rate are translated without that.
    undo: what make_family.py undoes of it: words of RATES and of STEPS there, "eps".
    wide: whether it casts to fewer digits inside, which is undone.
    rtol: how far the parameters may be off, relative to the mean step of an element.
    reason: what differs between the two, and why rtol is above 1e-9, if it is.
    """
    if name in CASES:
        raise ValueError(f"two cases are called {name!r}")
    ours = {"learning_rate": LR, **ours}
    names = {"learning_rate": "lr", "eps_root": None} | (names or {})
    betas = tuple(v for k, v in ours.items() if is_beta(k, names))
    kept = {k: v for k, v in ours.items() if not is_beta(k, names)}
    translated = {names.get(k, k): v for k, v in kept.items()}
    translated |= ({"betas": betas} if betas else {}) | (theirs or {})
    translated.pop(None, None)
    CASES[name] = {
        "optimizer": optimizer,
        "kwargs": ours,
        "leaf": leaf,
        "where": where,
        "library_kwargs": translated,
        "undo": undo,
        "wide": wide,
        "rtol": rtol,
        "reason": reason,
    }


def is_beta(name, names):
    return name in ("b0", "b1", "b2", "b3") and name not in names


def po(name, optimizer, leaf, cls, ours, theirs=None, **rest):
    """Add a case of pytorch_optimizer, one array after the other."""
    theirs = {"foreach": False} | (theirs or {})
    case(name, optimizer, leaf, f"pytorch_optimizer:{cls}", ours, theirs, **rest)


# A table: its rows stay short.
# fmt: off

# Order and reading.
LAPROP = "timm.optim.laprop:LaProp"
case("laprop_timm", "laprop", "scales", LAPROP, ADAM | {"eps": 1e-8})
case("laprop_timm_visible", "laprop", "scales", LAPROP, VISIBLE)
po("laprop_po", "laprop", "near", "LaProp", TINIED, {"weight_decay": 0.0},
   reason=HIDDEN)
case("laprop_nvidia", "laprop", "scales", "special:nvidia", VISIBLE,
     {"function": "laprop:calculate_laprop_update", "correct_bias": True})
ADOPT = "timm.optim.adopt:Adopt"
case("adopt_timm", "adopt", "near", ADOPT, {"b1": 0.8, "b2": 0.99, "eps": 1e-3},
     {"clip_exp": 0.25})
case("adopt_timm_no_clip", "adopt", "near", ADOPT, {"b1": 0.9, "b2": 0.9999,
     "eps": 1e-6, "use_clipping": False}, {"clip_exp": None},
     names={"use_clipping": None})
case("acprop_authors", "acprop", "near", "ACProp:ACProp", ADAM | {"eps": TINY,
     "eps_root": TINY, "weight_decay": 0.0}, {"rectify": False})

# Another gradient goes in.
GROKFAST = TINIED | {"slow_decay": 0.9, "slow_weight": 3.0, "weight_decay": 0.1}
SLOW = {"slow_decay": "grokfast_alpha", "slow_weight": "grokfast_lamb"}
po("grokfast_po", "grokfast_adamw", "from_zero", "GrokFastAdamW", GROKFAST,
   {"grokfast": True, "grokfast_after_step": 0, "normalize_lr": False}, names=SLOW,
   reason=FROM_FIRST)
case("grokfast_lucidrains", "grokfast_adamw", "from_zero",
     "grokfast_pytorch:GrokFastAdamW", GROKFAST, {"normalize_lr": False,
     "weight_decay": 0.1 * LR}, names=SLOW, reason=FROM_FIRST +
     "; decays by weight_decay without the rate")
MARS = {"b1": 0.9, "b2": 0.98, "eps": 1e-3, "gamma": 0.05, "weight_decay": 0.1}
for leaf in "near", "wide":
    case(f"mars_timm_{leaf}", "mars_adamw", leaf, "timm.optim.mars:Mars", MARS,
         {"optimize_1d": True})
case("mars_authors", "mars_adamw", "wide", "mars:MARS", MARS, {"optimize_1d": True},
     reason="sees a gradient 0 before the first: the clip to norm 1 hides it")
po("mars_po", "mars_adamw", "near", "MARS", {"b1": 0.95, "b2": 0.99, "eps": TINY,
   "gamma": 0.025, "weight_decay": 0.0}, {"optimize_1d": True}, rtol=1e-7,
   reason="adds 1e-15 to a raw nu of 1e-2 c^2, where the clipped c is 0.01 or less "
   "at first: 1e-9 of such steps and more")
SPAM = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "norm_b1": 0.6, "norm_b2": 0.8,
   "clip_decay": 0.9}
NORMS = {"norm_b1": "gamma1", "norm_b2": "gamma2", "reset_every": None}
for leaf in "near", "wide":
    case(f"stable_spam_authors_{leaf}", "stable_spam", leaf, "stablespam:StableSPAM",
         SPAM | {"reset_every": 1000}, names=NORMS | {"clip_decay": "gamma3"})
    po(f"stable_spam_po_{leaf}", "stable_spam", leaf, "StableSPAM", SPAM |
       {"reset_every": 100}, {"weight_decay": 0.0, "update_proj_gap": 101},
       names=NORMS | {"clip_decay": "theta"},
       reason="resets at its step 101, our count 100: once in these steps")

# Several averages.
QH = VISIBLE | {"v1": 0.6, "v2": 0.5}
VS = {"v1": None, "v2": None}
case("qhadam_authors", "qhadam", "scales", "qhoptim.pyt.qhadam:QHAdam", {"b1": 0.995,
     "b2": 0.999, "v1": 0.7, "v2": 1.0, "eps": 1e-8}, {"nus": (0.7, 1.0)}, names=VS)
case("qhadam_authors_visible", "qhadam", "scales", "qhoptim.pyt.qhadam:QHAdam", QH,
     {"nus": (0.6, 0.5)}, names=VS)
po("qhadam_po", "qhadam", "scales", "QHAdam", QH, {"nus": (0.6, 0.5)}, names=VS,
   wide=True, reason=CAST)
ADAN = {"b1": 0.9, "b2": 0.8, "b3": 0.95, "eps": 1e-3, "eps_root": 0.0,
   "weight_decay": 0.0}
case("adan_timm", "adan", "scales", "timm.optim.adan:Adan", ADAN, {"foreach": False})
case("adan_timm_decay", "adan", "scales", "timm.optim.adan:Adan", {"b1": 0.98,
     "b2": 0.92, "b3": 0.99, "eps": 1e-8, "eps_root": 0.0, "weight_decay": 0.1},
     {"no_prox": True, "foreach": False})
po("adan_po", "adan", "scales", "Adan", ADAN)
ADAPNM = "pnm_optim.adapnm:AdaPNM"
PNM = FAST | {"b0": 0.6}
case("adapnm_authors", "adapnm", "scales", ADAPNM, ADAM | {"b0": 1.0, "eps": 1e-8},
     {"weight_decay": 0.0})
case("adapnm_authors_visible", "adapnm", "scales", ADAPNM, PNM | {"eps": 1e-3},
     {"weight_decay": 0.0})
po("adapnm_po", "adapnm", "near", "AdaPNM", PNM | {"eps": TINY}, reason=HIDDEN)
DECAYS = {"decays": "betas"}
case("aggmo_authors", "aggmo", "scales", "src.aggmo:AggMo", {"decays": (0.0, 0.9,
     0.99)}, names=DECAYS)
case("aggmo_jettify", "aggmo", "scales", "torch_optimizer:AggMo", {"decays": (0.5,
     0.8)}, names=DECAYS)
po("aggmo_po", "aggmo", "wide", "AggMo", {"decays": (0.3, 0.6, 0.95, 0.99)},
   names=DECAYS)
po("ademamix_po", "ademamix", "scales", "AdEMAMix", FAST | {"b3": 0.99, "alpha": 3.0,
   "eps": 1e-3, "weight_decay": 0.1}, {"weight_decouple": True})

case("simplified_ademamix_nvidia", "simplified_ademamix", "near", "special:nvidia",
     {"b1": 0.9, "b2": 0.95, "alpha": 3.0, "eps": 1e-3},
     {"function": "ademamix:calculate_sim_ademamix_update", "correct_bias": False,
     "num_beta_fast_warmup_steps": None, "min_beta_fast": 0.0},
     undo=("second_correction", "eps"),
     reason="does not correct nu: its rate and its eps undo that")

# Another division.
case("padam_authors", "padam", "scales", "Padam:Padam", VISIBLE | {"partial": 0.2},
     {"amsgrad": True}, undo=("correction",),
     reason="corrects by sqrt(1 - b2^t) / (1 - b1^t): its rate undoes that")
ATAN2 = FAST | {"a": 1.27, "weight_decay": 0.1}
for b in 1.0, 1.7:
    case(f"adam_atan2_lucidrains_{b}", "adam_atan2", "scales",
         "adam_atan2_pytorch:AdamAtan2", ATAN2 | {"b": b}, {"decoupled_wd": False},
         names={"b": "b"})
for leaf in "scales", "wide":
    case(f"diffgrad_jettify_{leaf}", "diffgrad", leaf, "torch_optimizer:DiffGrad",
         VISIBLE, undo=("eps",), reason=RAW_EPS)
po("diffgrad_po", "diffgrad", "near", "DiffGrad", ADAM | {"eps": TINY}, reason=HIDDEN)
case("adadelta_torch", "adadelta", "scales", "torch.optim:Adadelta", {"rho": 0.8,
     "eps": 1e-3})
case("adadelta_torch_small", "adadelta", "scales", "torch.optim:Adadelta",
     {"learning_rate": 1.0, "rho": 0.9, "eps": 1e-6})
MADGRAD = "adds eps to the rate, as Optax does"
case("madgrad_authors", "madgrad", "scales", "madgrad:MADGRAD", {"eps": 1e-3,
     "momentum": 0.8}, reason=MADGRAD)
case("madgrad_timm", "madgrad", "scales", "timm.optim.madgrad:MADGRAD", {"eps": 1e-6,
     "momentum": 0.9}, reason=MADGRAD)
BOUND = {"b2": 0.95, "final_lr": 0.05, "gamma": 1e-2, "eps": 1e-3}
case("adabound_authors", "adabound", "scales", "adabound:AdaBound", {"b1": 0.0} | BOUND,
     undo=("inside", "eps"), reason=INSIDE)
case("adabound_jettify", "adabound", "near", "torch_optimizer:AdaBound", {"b1": 0.8} |
     BOUND, undo=("inside", "eps"), reason=INSIDE)
for b1 in 0.0, 0.8:
    case(f"adamod_jettify_{b1}", "adamod", "scales", "torch_optimizer:AdaMod",
         {"b1": b1, "b2": 0.95, "b3": 0.99, "eps": 1e-3}, {"betas": (b1, 0.95),
         "beta3": 0.99}, undo=("inside", "eps"), reason=INSIDE)
po("stable_adamw_po", "stable_adamw", "scales", "StableAdamW", VISIBLE |
   {"weight_decay": 0.1}, {"kahan_sum": False})
po("stable_adamw_po_wide", "stable_adamw", "wide", "StableAdamW", ADAM | {"eps": 1e-8,
   "weight_decay": 0.01}, {"kahan_sum": False})

# Trust ratios, signs and masks.
LAMB = VISIBLE | {"weight_decay": 0.1}
for leaf in "scales", "tall":
    case(f"lamb_timm_{leaf}", "lamb", leaf, "timm.optim.lamb:Lamb", LAMB,
         {"max_grad_norm": None})
case("lamb_timm_no_decay", "lamb", "wide", "timm.optim.lamb:Lamb", LAMB |
     {"weight_decay": 0.0}, {"max_grad_norm": None, "always_adapt": True})
for nesterov in False, True:
    case(f"lars_timm_{nesterov}", "lars", "wide", "timm.optim.lars:Lars",
         {"momentum": 0.8, "trust_coefficient": 0.1, "nesterov": nesterov},
         {"always_adapt": True, "eps": 0.0}, names={"trust_coefficient": "trust_coeff"},
         reason="multiplies by the rate after the momentum: one for a constant rate")
po("signum_po", "signum", "scales", "SignSGD", {"beta": 0.8},
   names={"beta": "momentum"})
case("signum_nvidia", "signum", "wide", "special:nvidia", {"beta": 0.9},
     {"function": "signum:calculate_signum_update", "correct_bias": True,
     "nesterov": False}, names={"beta": "momentum"})
po("tiger_po", "tiger", "scales", "Tiger", {"b1": 0.9, "weight_decay": 0.1},
   names={"b1": "beta"})
DECAYED = VISIBLE | {"weight_decay": 0.1}
po("cautious_po", "cautious_adamw", "near", "MARS", DECAYED, {"betas_1d": (0.8, 0.95),
   "weight_decay_1d": 0.1, "lr_1d_factor": 1.0, "optimize_1d": False, "cautious": True},
   undo=("eps",),
   reason="MARS steps a vector by cautious AdamW; adds 1e-15 to the raw nu; " + RAW_EPS)
case("grams_authors", "grams", "scales", "grams:Grams", DECAYED, undo=("eps",),
     reason=RAW_EPS)
po("grams_po", "grams", "wide", "Grams", DECAYED, {"weight_decouple": True})
case("cautious_decay_heavyball", "cautious_decay_adamw", "near", "heavyball:AdamW",
     TINIED | {"weight_decay": 0.1}, {"cautious_weight_decay": True,
     "compile_step": False, "multi_tensor": False, "storage_dtype": "float64"})

# Shared second moments.
FACTORED = {"min_dim_size_to_factor": 2, "multiply_by_parameter_scale": False,
   "eps": 1e-3}
SCALE = {"multiply_by_parameter_scale": "scale_parameter"}
for leaf in "wide", "scales":
    case(f"adafactor_timm_{leaf}", "adafactor", leaf, "timm.optim.adafactor:Adafactor",
         FACTORED, names=SCALE)
case("adafactor_timm_momentum", "adafactor", "tall", "timm.optim.adafactor:Adafactor",
     FACTORED | {"clipping_threshold": 0.5, "decay_rate": 0.6, "momentum": 0.8,
     "dtype_momentum": "float64"}, {"betas": (0.8, 0.0), "decay_rate": -0.6},
     names=SCALE | {"clipping_threshold": "clip_threshold", "momentum": None,
     "dtype_momentum": None})
case("adam_mini_authors", "adam_mini", "wide", "special:adam_mini", VISIBLE,
     {"name": "mlp.weight", "verbose": False},
     reason="of a parameter that is called mlp, a block is a row")
case("rowwise_adagrad_torchrec", "rowwise_adagrad", "wide",
     "torchrec.optim.rowwise_adagrad:RowWiseAdagrad", {"initial_accumulator_value": 0.1,
     "eps": 1e-3})
for leaf in "wide", "vector":
    case(f"sm3_torch_{leaf}", "sm3", leaf, "SM3:SM3", {"momentum": 0.8}, {"eps": 1e-8})
case("novograd_timm", "novograd", "wide", "timm.optim.nvnovograd:NvNovoGrad",
     {"b1": 0.8, "b2": 0.6, "eps": 1e-3, "weight_decay": 0.1})
CAME = FAST | {"b3": 0.99, "eps": 1e-3, "eps_confidence": 1e-6,
   "clipping_threshold": 0.7, "weight_decay": 0.1, "min_dim_size_to_factor": 2}
CLIP = {"clipping_threshold": "clip_threshold", "min_dim_size_to_factor": None}
for leaf in "wide", "tall":
    case(f"came_authors_{leaf}", "came", leaf, "came_pytorch:CAME", CAME,
         {"eps": (1e-3, 1e-6)}, names=CLIP | {"eps_confidence": None})
po("came_po", "came", "square", "CAME", CAME, names=CLIP | {"eps": "eps1",
   "eps_confidence": "eps2"})

# Whole matrices.
for steps in 5, 3:
    case(f"muon_torch_{steps}", "muon", "square", "torch.optim:Muon", {"beta": 0.9,
         "eps": TINY, "nesterov": False, "ns_steps": steps, "weight_decay": 0.1},
         {"eps": 1e-8, "adjust_lr_fn": "original"}, names={"beta": "momentum"},
         wide=True,
         reason="square, since it scales by sqrt(rows / columns) where Optax has the "
         "inverse; takes max(norm, eps) where Optax adds eps; " + CAST)
for leaf in "wide", "tall", "square":
    case(f"normuon_authors_{leaf}", "normuon", leaf, "normuon:SingleDeviceNorMuon",
         {"beta": 0.9, "b2": 0.8, "eps": 1e-10, "nesterov": True,
         "weight_decay": 0.0},
         names={"beta": "momentum", "b2": "beta2", "eps": None,
         "nesterov": None}, undo=("norm",),
         wide=True, rtol=1e-5,
         reason="adds 1e-7 to the norm before Newton-Schulz; keeps the norm that "
         "Newton-Schulz gave: every step is brought to 0.2 sqrt(m n), which the paper "
         "has; " + CAST)
    case(f"adamuon_authors_{leaf}", "adamuon", leaf, "special:adamuon", {"beta": 0.95,
         "eps": 1e-12, "nesterov": True, "weight_decay": 0.1},
         names={"beta": "momentum", "nesterov": None}, wide=True, rtol=1e-5,
         reason="adds 1e-7 to the norm before Newton-Schulz; " + CAST)
for frequency in 10, 1:
    case(f"soap_authors_{frequency}", "soap", "square", "special:soap", {"b1": 0.9,
         "b2": 0.8, "eps": 1e-3, "weight_decay": 0.0,
         "precondition_frequency": frequency}, undo=("eps_late",), wide=True,
         reason="square, since null spaces have no one basis; its first step only "
         "fills the preconditioner; decays after the step, so without; sorts the "
         "eigenvectors, which Algorithm 4 does not: without that; "
         + RAW_EPS + "; " + CAST)
for leaf in "wide", "tall":
    for gap, b1 in (STEPS, 0.8), (50, 0.0):
        case(f"galore_authors_{leaf}_{gap}", "galore_adamw", leaf, "special:galore",
             {"b1": b1, "b2": 0.95, "eps": 1e-3, "rank": 3, "update_gap": gap,
             "scale": 0.5, "weight_decay": 0.0},
             names={"update_gap": "update_proj_gap"}, undo=("eps",), wide=True,
             reason="singular vectors have no one sign, and mu depends on it: one "
             "projection, or no mu; decays after the step, so without; " + RAW_EPS +
             "; " + CAST)
for leaf in "wide", "vector":
    po(f"shampoo_po_{leaf}", "shampoo", leaf, "Shampoo", {"eps": 1e-6},
       {"preconditioning_compute_steps": 1}, names={"eps": None})

# Iterates.
FREE = VISIBLE | {"weight_decay": 0.1}
for leaf in "near", "wide":
    case(f"schedule_free_authors_{leaf}", "schedule_free_adamw", leaf,
         "schedulefree:AdamWScheduleFree", FREE, {"foreach": False})
    case(f"schedule_free_radam_authors_{leaf}", "schedule_free_radam", leaf,
         "schedulefree:RAdamScheduleFree", FREE, {"foreach": False})
case("lookahead_po", "lookahead", "scales", "special:lookahead", VISIBLE |
     {"sync_period": 5, "slow_step_size": 0.8}, names={"sync_period": "k",
     "slow_step_size": "alpha"})
case("prodigy_authors", "prodigy", "scales", "prodigyopt:Prodigy",
     {"learning_rate": 1.0, "betas": (0.8, 0.95), "weight_decay": 0.01},
     {"use_bias_correction": True, "decouple": True})
for leaf in "wide", "square":
    case(f"adam_hyperball_nvidia_{leaf}", "adam_hyperball", leaf, "special:nvidia",
         VISIBLE, {"function": "adam:calculate_adam_update", "correct_bias": True,
         "nesterov": False, "hyperball": True}, wide=True,
         reason="its Adam inside its hyperball; " + CAST)
for leaf in "near", "settled":
    po(f"swats_po_{leaf}", "swats", leaf, "SWATS", FAST | {"eps": 1e-9}, rtol=1e-5,
       reason="adds its eps of 1e-9 to the root before the correction, 1e-8 of it; "
       "with these gradients switches where we do: step 2 of settled, never in near")
