"""The page docs/study.md, made of what `benchmarks/family_study.py` has measured."""

import json
import math
import textwrap

import altair as alt

from adam_jax import OPTIMIZERS
from adam_jax.experiments.family import paragraph
from adam_jax.experiments.metrics import ACCURACY
from adam_jax.experiments.pictures.drawing import (
    COLOURS,
    Line,
    Look,
    compose,
    draw_panel,
    to_picture,
)
from adam_jax.experiments.pictures.scales import scale_log
from adam_jax.experiments.study.members import from_json
from adam_jax.experiments.study.outcomes import Outcome, Spread
from adam_jax.family.table import PARENTS

BASE = "adam"
SHOWN = {
    "topics": "a character transformer on Python's manual",
    "mnist": "a convolutional network on images of MNIST",
    "words": "logistic regression on the sparse words of SciPy's docstrings",
}
RIVALS, IMAGES = ("adam", "sgd", "swats"), "mnist"
SHARES = (0.1, 0.5, 1.0)
CURVES = {"train_loss": "training loss", "test_loss": "test loss"}

# What takes too long to be tried.
LEFT_OUT = {
    ("words", name): "one axis has 5,000 words, and a matrix for it 25 million elements"
    for name in ("shampoo", "soap")
} | {("mnist", "shampoo"): "it takes the root of a matrix of 784 by 784 in each step"}

# Why an option is not the default.
WHY = {"swats": " (at its own, the paper's 1e-9, it switched in no trial of ours)"}

# What a claim is about and this study has not.
NOT_HERE = {
    "adan": "large batches",
    "ademamix": "long training",
    "amsgrad": "a problem on which Adam does not converge",
    "galore_adamw": "matrices larger than its rank of 128",
    "grokfast_adamw": "algorithmic data",
    "lamb": "batches of thousands",
    "lars": "batches of thousands",
    "optimistic_adam": "games of two players",
    "rmsprop": "moving targets",
    "rowwise_adagrad": "embedding tables of a size that matters",
    "schedule_free_adamw": "a test at its average",
    "schedule_free_radam": "a test at its average",
    "stable_adamw": "loss spikes of large models",
    "stable_spam": "very low precision",
    "tiger": "gradient accumulation",
}


def write_page(path, parts):
    """Write the page, and beside it the picture.

    Args:
      path: Of the page.
      parts: What is stored of each (problem, optimizer).
    """
    problems = [name for name in SHOWN if any(key[0] == name for key in parts)]
    sections = [*describe(problems, parts), *answer(problems, parts)]
    for name in problems:
        sections += tabulate(name, parts)
    sections += compare_claims(problems, parts)
    sections += show_switch(path, parts)
    path.write_text("\n\n".join(sections) + "\n", "utf-8")


def describe(problems, parts):
    """Say what was done, and on what."""
    optimizers = [name for name in OPTIMIZERS if any(key[1] == name for key in parts)]
    rows = []
    for name in problems:
        own = [part for (problem, _), part in parts.items() if problem == name]
        config, (train, test) = own[0]["config"], own[0]["examples"]
        rows.append(
            [
                f"`{name}`: {SHOWN[name]}",
                f"{own[0]['parameters']:,}",
                f"{train:,}",
                f"{test:,}",
                config["batch_size"],
                own[0]["steps_per_epoch"] * config["epochs"],
                f"{sum(part['cpu_seconds'] for part in own) / 60:.1f}",
            ]
        )
    heads = ["problem", "parameters", "training examples", "test examples"]
    heads += ["batch", "steps", "minutes of CPU time, all"]
    machines = {
        f"{part['machine']['cpu']}, {part['machine']['cores']} cores, "
        f"jax {part['machine']['versions']['jax']}"
        for part in parts.values()
    }
    grids, changed = {}, {}
    for (_, optimizer), part in parts.items():
        rates = part["config"]["grid"]["learning_rate"]
        grids.setdefault((rates[0], rates[-1]), {})[optimizer] = None
        (own,) = part["config"]["optimizers"]
        for key, value in ({"momentum": own["momentum"]} | own["arguments"]).items():
            if value is not None:
                changed[optimizer] = f"`{optimizer}` has a {key} of {value:g}"
                changed[optimizer] += WHY.get(optimizer, "")
    usual = max(grids, key=lambda ends: len(grids[ends]))
    ranges = [f"{usual[0]:g} to {usual[1]:g}"]
    ranges += [
        f"{low:g} to {high:g} for {listed(grids[low, high])}"
        for low, high in sorted(grids)
        if (low, high) != usual
    ]
    missing = [name for name in OPTIMIZERS if name not in optimizers]
    absent = f" Not yet run: {listed(missing)}." if missing else ""
    return [
        "# Which optimizers are worth it?",
        say(
            f"{len(optimizers)} optimizers of the family on three small problems, each "
            "with the same budget of learning rates, on CPU. `make study` repeats it; "
            "what it has done it keeps, and this page is written from that." + absent
        ),
        "## What was done",
        table(heads, rows),
        points(
            "Each optimizer is trained at seven learning rates, half a decade apart, "
            "from seed 0. The rate with the smallest test loss after the last step is "
            "trained from the seeds 1, 2 and 3: these are reported. The test examples "
            "that choose the rate are those that are reported, for all alike.",
            f"The rates are {'; '.join(ranges)}. Where the best lies at the end of a "
            "grid the table says so, and the grid is not extended: there may be a "
            "better one.",
            "Everything else is the optimizer's default"
            + "".join(f"; {words}" for words in changed.values())
            + ".",
            "The rate falls to zero along a cosine, without a warm-up, for all: at a "
            "constant rate the noise of the last steps would decide the order. Methods "
            "that are made for a constant rate may lose by it.",
            "*Apart* from another means that the ranges of the three seeds do not "
            "overlap. Two optimizers that are equal come out apart in 2 of 20 cases: "
            "three and three numbers lie in one of 20 orders, and two of these do not "
            f"overlap. So about {max(0, len(optimizers) - 1) / 10:.1f} of the verdicts "
            "in each table are to be expected of chance alone.",
            "*ms a step* is the CPU time of the fastest epoch of one run, its test "
            "included, divided by its steps. The runs of a program are made in turn, "
            "on one thread, beside other programs: a fifth more or less says nothing.",
            f"Machine: {'; '.join(sorted(machines))}. All took "
            f"{sum(part['cpu_seconds'] for part in parts.values()) / 60:.0f} minutes "
            "of CPU time, compilation included; with two programs at once it is half "
            "of that on the clock.",
            *(
                f"Left out: `{optimizer}` on `{name}`, where {why}."
                for (name, optimizer), why in LEFT_OUT.items()
                if optimizer in optimizers
            ),
        ),
    ]


def answer(problems, parts):
    """Sum up which optimizers came out apart from Adam."""
    groups = {
        "Better than `adam`, apart, on two problems or three, and worse on none": [],
        "Better on one, and worse on none": [],
        "Not to be told apart from `adam` on any": [],
        "Better on some and worse on others": [],
        "Worse on one, and better on none": [],
        "Worse on two or three, and better on none": [],
    }
    titles, small = list(groups), []
    for optimizer in OPTIMIZERS:
        keys = [(name, optimizer) for name in problems]
        if optimizer == BASE or not all(key in parts for key in keys):
            continue
        verdicts = [judge(parts, *key, BASE) for key in keys]
        if "" in verdicts:
            continue
        better, worse = verdicts.count("better"), verdicts.count("worse")
        if better and worse:
            groups[titles[3]].append(optimizer)
        elif better:
            groups[titles[0 if better > 1 else 1]].append(optimizer)
        else:
            groups[titles[[2, 4, 5, 5][worse]]].append(optimizer)
        sizes = [parts[name, who]["bytes_per_parameter"] for name, who in keys]
        bases = [parts[name, BASE]["bytes_per_parameter"] for name in problems]
        if not worse and all(a < 0.9 * b for a, b in zip(sizes, bases, strict=True)):
            small.append(optimizer)
    lines = [f"{title}: {listed(names)}." for title, names in groups.items()]
    lines.append(f"With less state than `adam`, and worse on none: {listed(small)}.")
    return [
        "## The answer in short",
        points(*lines),
        say(
            "A few hundred steps of small models say nothing of large ones. One "
            "verdict of three may well be chance; three of a kind hardly are."
        ),
    ]


def tabulate(name, parts):
    """Make the table of a problem, best first."""
    own = {who: part for (problem, who), part in parts.items() if problem == name}
    order = sorted(own, key=lambda who: rank(final(own[who])))
    rows, speed = [], own[BASE]["seconds_per_step"] if BASE in own else math.nan
    for who in order:
        part = own[who]
        loss, accuracy = final(part), final(part, ACCURACY)
        rows.append(
            [
                f"`{who}`",
                tell_rate(part),
                number(loss.mean),
                f"{number(loss.low)} to {number(loss.high)}",
                f"{accuracy.mean:.1%}" if math.isfinite(accuracy.mean) else "-",
                f"{part['bytes_per_parameter']:.2f}",
                f"{1e3 * part['seconds_per_step']:.2f}",
                number(part["seconds_per_step"] / speed, 2),
                tell_verdict(judge(parts, name, who, BASE)) if who != BASE else "-",
            ]
        )
    heads = ["optimizer", "best rate", "test loss", "over 3 seeds", "test accuracy"]
    heads += ["bytes a parameter", "ms a step", "beside `adam`'s", "apart from `adam`"]
    verdicts = {who: judge(parts, name, who, BASE) for who in order if who != BASE}
    alike = [who for who, verdict in verdicts.items() if verdict == "alike"]
    better, worse = (list(verdicts.values()).count(x) for x in ("better", "worse"))
    return [
        f"## {SHOWN[name][0].upper()}{SHOWN[name][1:]}",
        table(heads, rows),
        say(
            f"Of the {len(verdicts)} others, {better} came out better than `adam`, "
            f"{worse} worse, and "
            f"{len(alike)} cannot be told apart from it: {listed(alike)}."
        ),
    ]


def compare_claims(problems, parts):
    """Put what is said of each optimizer beside what came out."""
    items = []
    for optimizer in OPTIMIZERS:
        tried = [name for name in problems if (name, optimizer) in parts]
        if not tried:
            continue
        claim = paragraph(optimizer, "When") or "Its docstring claims nothing."
        parent = PARENTS.get(optimizer, BASE)
        if not all((name, parent) in parts for name in tried):
            parent = BASE
        words = [f"**`{optimizer}`**: {claim}", "*Here*"]
        if optimizer != parent and all((name, parent) in parts for name in tried):
            words += [f"beside `{parent}`: {compare(tried, optimizer, parent, parts)}."]
        else:
            words += ["it is what others are compared with."]
        ends = [name for name in tried if parts[name, optimizer]["border"]]
        if ends:
            words += [f"Its best rate lies at the end of the grid on {listed(ends)}."]
        if optimizer in NOT_HERE:
            words += [f"Not tried: {NOT_HERE[optimizer]}."]
        items.append(" ".join(words))
    return [
        "## What is claimed, and what came out",
        say(
            "The claim is the *When* of the optimizer's docstring: what its paper says "
            "of it, and what is known since. Beside it stands what came out against "
            "the optimizer that it changes, by test loss as above."
        ),
        points(*items),
    ]


def compare(problems, optimizer, parent, parts):
    """Say of each problem which of two did better, and what it cost."""
    words, ratios = [], []
    for name in problems:
        ours, theirs = parts[name, optimizer], parts[name, parent]
        verdict = tell_verdict(judge(parts, name, optimizer, parent), "not apart")
        losses = f"{number(final(ours).mean)}, {number(final(theirs).mean)}"
        words.append(f"{verdict} on `{name}` ({losses})")
        ratios.append(ours["seconds_per_step"] / theirs["seconds_per_step"])
    size = ours["bytes_per_parameter"], theirs["bytes_per_parameter"]
    times = " to ".join(dict.fromkeys(f"{x(ratios):.1f}" for x in (min, max)))
    words.append(f"{size[0]:.1f} bytes a parameter, {size[1]:.1f}")
    words.append(f"a step takes {times} times as long")
    return "; ".join(words)


def show_switch(path, parts):
    """Compare Adam, SGD and the switch between them over the steps, on images."""
    own = {who: parts.get((IMAGES, who)) for who in RIVALS}
    missing = [who for who, part in own.items() if not part or not part["chosen"]]
    if missing:
        print(f"no section on Adam early and SGD late: {listed(missing)} not there")
        return []
    own = {who: part for who, part in own.items() if part}
    picture = path.with_name("study_switch.png")
    picture.write_bytes(to_picture(draw_switch(own)))
    rows, ahead = [], {}
    for curve, what in CURVES.items():
        for share in SHARES:
            spreads = {who: at_share(part, curve, share) for who, part in own.items()}
            ahead[curve, share] = verdict(spreads["adam"], spreads["sgd"])
            order = sorted(spreads, key=lambda who: rank(spreads[who]))
            alike = [
                who
                for who in order[1:]
                if verdict(spreads[order[0]], spreads[who]) != "better"
            ]
            lowest = f"`{order[0]}`"
            lowest += f", not apart from {listed(alike)}" if alike else ""
            cells = [
                f"{number(x.mean)} ({number(x.low)} to {number(x.high)})"
                for x in spreads.values()
            ]
            rows.append([what, f"{share:.0%}", *cells, lowest])
    steps = [step for step in own["swats"]["switched"] if step is not None]
    switched = (
        f"`swats` had switched to SGD by step {', '.join(map(str, steps))} "
        f"in {len(steps)} of {len(own['swats']['chosen'])} runs."
        if steps
        else "`swats` switched to SGD in none of its runs: it was Adam to the end."
    )
    rates = ", ".join(f"`{who}` {tell_rate(part)}" for who, part in own.items())
    return [
        "## Adam early, SGD late?",
        say(
            "On images Adam is said to be ahead early and SGD late; `swats` begins as "
            "the one and switches to the other. The problem is "
            f"{SHOWN[IMAGES]}, at the rates chosen above for the loss at the end "
            f"({rates}), three seeds each."
        ),
        f"![Training loss of adam, sgd and swats against steps]({picture.name})",
        table(["", "of the steps", *(f"`{who}`" for who in own), "lowest"], rows),
        say(
            *(
                f"By {what}, that Adam is ahead of SGD early (10% of the steps) "
                f"{shows(ahead[curve, 0.1] == 'better')}, and that SGD is ahead of "
                f"Adam at the end {shows(ahead[curve, 1.0] == 'worse')}."
                for curve, what in CURVES.items()
            ),
            switched,
            "A loss here is the mean over the batches of an epoch, or that of the test "
            "after it.",
        ),
    ]


def draw_switch(own):
    """Draw the training loss of each seed, with the switches marked."""
    lines, marks = [], []
    for colour, (who, part) in zip(COLOURS, own.items(), strict=False):
        for member, switch in zip(part["chosen"], part["switched"], strict=True):
            losses, each = member["train_loss"], part["steps_per_epoch"]
            steps = [each * n for n in range(1, 1 + len(losses))]
            lines.append(Line(who, steps, losses, Look(colour, width=1), marked=False))
            if switch is not None:
                at, loss = [switch], [losses[steps.index(switch)]]
                name = "swats has switched to SGD"
                look = Look(colour, width=0)
                marks.append(Line(name, at, loss, look, joined=False))
    x = alt.X("x:Q", title="step")
    scale = scale_log(y for line in lines for y in line.y)
    what = "training loss, mean over an epoch"
    panel = draw_panel("", "", [*lines, *marks], x, what, scale)
    return compose("", [panel], 1, width=640, height=330)


def final(part, curve="test_loss"):
    """Give a curve's last value over the seeds; NaN if one diverged."""
    return at_share(part, curve, 1.0)


def at_share(part, curve, share):
    """Give the value of a curve over the seeds, after a share of the epochs."""
    members = [from_json(json.dumps(member)) for member in part["chosen"]]
    if not members:
        return Spread(math.nan, math.nan, math.nan)
    epoch = max(1, round(share * len(members[0].test_loss)))
    return Outcome("", {}, [member.until(epoch) for member in members]).final(curve)


def judge(parts, name, optimizer, other):
    """Tell how an optimizer came out beside another; "" if that is not there."""
    if (name, other) not in parts:
        return ""
    return verdict(final(parts[name, optimizer]), final(parts[name, other]))


def verdict(ours, theirs):
    """Tell whether ranges are apart: better, worse, or alike if they overlap."""
    if math.isnan(ours.mean) or math.isnan(theirs.mean):
        lost = math.isnan(ours.mean) - math.isnan(theirs.mean)
        return ("better", "alike", "worse")[lost + 1]
    if ours.high < theirs.low:
        return "better"
    return "worse" if ours.low > theirs.high else "alike"


def rank(spread):
    """Sort by the mean, with what diverged at the end."""
    return math.inf if math.isnan(spread.mean) else spread.mean


def tell_verdict(word, alike="no"):
    """Put a verdict in the words of a table."""
    return {"better": "better", "worse": "worse", "alike": alike, "": "-"}[word]


def tell_rate(part):
    """Give the chosen rate, and whether it lies at the end of the grid."""
    if not part["chosen"]:
        return "all diverged"
    rate = part["chosen"][0]["setting"]["learning_rate"]
    rates = part["config"]["grid"]["learning_rate"]
    ends = {rates[0]: " (lowest)", rates[-1]: " (highest)"}
    return f"{rate:g}{ends.get(rate, '')}"


def shows(holds):
    """Say plainly whether something shows."""
    return "**shows**" if holds else "**does not show**"


def number(value, digits=4):
    """Write a number that may be missing."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "diverged"


def listed(names):
    """Join names with commas."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def say(*sentences):
    """Make a paragraph."""
    text = " ".join(sentences)
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def points(*items):
    """Make a list."""
    return "\n".join(
        textwrap.indent(say(item), "  ").replace("  ", "- ", 1) for item in items
    )


def table(heads, rows):
    """Make a table, numbers to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
