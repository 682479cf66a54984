"""`adam-jax report`: what the page says, that it loads nothing, and what is no run."""

import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from specs import Shown

from adam_jax.experiments.cli import main
from adam_jax.experiments.pictures.drawing import COLOURS
from adam_jax.experiments.pictures.run_charts import RATIO
from adam_jax.experiments.report.pages import _bundle_vega
from adam_jax.experiments.study.members import read_members
from adam_jax.experiments.study.outcomes import group_members, label

NAN = math.nan


class Reader(HTMLParser):
    """Collect what a page loads, its scripts, and its text outside of them."""

    def __init__(self):
        super().__init__()
        self.loaded, self.scripts, self.words, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        """Note what would be loaded: all but links to click on."""
        self.tags.append(tag)
        keys = ("src", "srcset", "data", "poster", "action")
        keys += ("href",) if tag != "a" else ()
        self.loaded += [value for key, value in attrs if key in keys]

    def handle_data(self, data):
        """Keep scripts apart from text."""
        if data.strip():
            in_script = self.tags[-1] == "script"
            (self.scripts if in_script else self.words).append(data)


def read_page(path):
    """Give the reader of a page, and its charts by the first words of their titles."""
    reader = Reader()
    text = path.read_text("utf-8")
    assert text.count(_bundle_vega()) == 1
    text = text.replace(_bundle_vega(), "vega")
    reader.feed(text)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', text)[1])
    pairs = zip(titles, charts, strict=True)
    return reader, {title.split(":")[0]: Shown(x, title) for title, x in pairs}


def report(*folders, out=None):
    """Run the command, and read the page that it makes."""
    options = [f"--out={out}"] if out else []
    assert main(["report", *map(str, folders), *options]) == 0
    return read_page(out or folders[0] / "report.html")


def read_metrics(folder):
    """Read metrics.jsonl."""
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_page_shows_what_the_run_has_recorded(write_run, capfd):
    folder = write_run(test_loss=NAN)
    page, charts = report(folder)
    out, err = capfd.readouterr()
    assert (out, err) == (f"{folder / 'report.html'}\n", "")
    epochs = read_metrics(folder)
    curves = charts["Loss"].lines()
    assert curves["training"] == [epoch["train_loss"] for epoch in epochs]
    assert curves["test"] == [None] * 4
    assert charts["Loss"].lines("x")["training"] == [1, 2, 3, 4]
    assert charts["Loss"].axis("y")["scale"]["type"] == "log"
    (accuracy,) = charts["Test accuracy"].lines().values()
    assert accuracy == [epoch["metrics"]["accuracy"] for epoch in epochs]
    for title, figure in (
        ("Relative update", "update_ratio"),
        ("Gradient", "gradient_norm"),
        ("Parameters", "param_norm"),
    ):
        found = charts[title].lines()
        for name, key in (
            ("all parameters", figure),
            ("head/kernel (moved 0.4)", f"{figure}/head/kernel"),
            ("<b>body</b> (moved 0)", f"{figure}/<b>body</b>"),
        ):
            assert found[name] == [epoch["figures"][key] for epoch in epochs]
    found = charts["Distance"].lines()
    moved = [epoch["moved"]["head/kernel"] for epoch in epochs]
    assert found["head/kernel (moved 0.4)"] == moved
    found = charts["Bias correction"].lines()
    assert found["second"] == [e["figures"]["bias_correction_nu"] for e in epochs]
    words = " ".join(page.words)
    assert "87.50%" in words  # the accuracy of epoch 4: 1 - 0.5 / 4
    assert "4 of 4" in words
    scale = charts["Relative update"].axis("y")["scale"]
    assert scale["type"] == "symlog"  # a group stands still
    assert "Updates lost to rounding" not in charts  # there are none


def test_quantiles_are_bands_around_the_median(write_run):
    _, charts = report(write_run())
    chart = charts["Effective step"]
    assert chart.lines()["mine"] == [3 / (6 * n) for n in (1, 2, 3, 4)]
    for number, (low, high) in enumerate(((2, 4), (1, 5))):
        expected = [(n, low / (6 * n), high / (6 * n)) for n in (1, 2, 3, 4)]
        assert chart.band(number) == expected
    assert [layer["mark"]["type"] for layer in chart.layers][:2] == ["area"] * 2


def test_the_ratio_is_charted_by_group(write_run):
    _, charts = report(write_run())
    found = charts["Signal-to-noise ratio"].lines()
    assert found["all parameters"] == [0.5 * 3 / (6 * n) for n in (1, 2, 3, 4)]
    assert found["head/kernel (moved 0.4)"] == [0.5 / n for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("share", [0.999, 0.5])
def test_ratios_that_are_the_steps_are_not_charted_twice(share, write_run, tmp_path):
    figures = {"effective_step_quantiles/q50": 0.25, f"{RATIO}": 0.25 * share}
    runs = [write_run(name, figures=figures) for name in ("first", "second")]
    page, charts = report(*runs, out=tmp_path / "both.html")
    assert charts["Effective step"].lines()["second"] == [0.25] * 4
    is_same = "it is the signal-to-noise ratio, too" in " ".join(page.words)
    assert is_same == ("Signal-to-noise ratio" not in charts) == (share > 0.9)


def test_a_band_has_a_gap_where_an_edge_has_no_place(write_run):
    folder = write_run()
    rows = read_metrics(folder)
    rows[1]["figures"]["effective_step_quantiles/q05"] = 0.0
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    _, charts = report(folder)
    assert [x for x, *_ in charts["Effective step"].band(1)] == [1, 3, 4]


def test_faults_are_charted_where_there_are_any(write_run):
    figures = {"swallowed": 0.5, "swallowed/head/kernel": 0.75, "nonfinite": 0.0}
    page, charts = report(write_run(figures=figures, skipped=7))
    assert (
        charts["Updates lost to rounding"].lines()["head/kernel (moved 0.4)"]
        == [0.75] * 4
    )
    assert "Gradients that are not finite" not in charts
    assert "Relative update" not in charts  # an optimizer's without figures
    (skipped,) = charts["Skipped steps"].lines().values()
    assert skipped == [7] * 4
    assert "Skipped steps" in page.words


def test_of_many_groups_those_are_charted_that_moved_most_and_least(write_run):
    moved = {f"group{n}": n / 8 for n in range(8)}
    _, charts = report(write_run(moved=moved))
    names = [f"group{n} (moved {n / 8:.2g})" for n in (7, 6, 5, 2, 1, 0)]
    assert list(charts["Distance"].lines()) == names


def test_runs_side_by_side(write_run, tmp_path, capfd):
    first, second = write_run("first"), write_run("second", epochs=2, train_loss=0.25)
    assert main(["report", str(first), str(second)]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page, charts = read_page(tmp_path / "report.html")
    solid, dotted, *others = charts["Loss"].column("y")
    assert solid == ("first", [epoch["test_loss"] for epoch in read_metrics(first)])
    assert dotted == ("first", [epoch["train_loss"] for epoch in read_metrics(first)])
    dashes = [dash[0] for _, dash in charts["Loss"].column("dash")]
    assert dashes == [[1, 0], [2, 2]] * 2
    colours = [colour[0] for _, colour in charts["Loss"].column("colour")]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert others == [("second", [2.5, 1.25]), ("second", [0.25, 0.25])]
    found = charts["Relative update"].lines()
    assert found == {"first": [1, 1 / 2, 1 / 3, 1 / 4], "second": [1, 1 / 2]}
    assert "2 of 4" in page.words
    assert "8 that are the same in all" in page.words  # all but the name


def test_a_run_that_is_still_at_work(write_run):
    folder = write_run(epochs=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    page, charts = report(folder)
    assert "2 of 4" in page.words
    assert len(charts["Loss"].lines()["training"]) == 2


def test_the_environment(write_run, tmp_path):
    first, second = write_run("first"), write_run("second")
    machine = {"cpu": "abacus", "versions": {"jax": "9.9", "torch": None}}
    (first / "environment.json").write_text(json.dumps(machine))
    page, _ = report(first)
    assert {"abacus", "versions.jax", "9.9"} <= set(page.words)
    assert "versions.torch" not in page.words
    page, _ = report(first, second, out=tmp_path / "both.html")
    assert "Not recorded by second." in page.words
    page, _ = report(second)
    assert "Not recorded: this is what has made the page." in page.words


def test_the_config(write_run):
    folder = write_run()
    with (folder / "config.toml").open("a") as file:
        file.write('[[tried]]\nname = "adam"\nb1 = 0.9\n[[tried]]\nname = "sgd"\n')
    words = report(folder)[0].words
    for key, value in (
        ("arguments.widths", "[8, 4]"),
        ("optimizer.learning_rate", "0.001"),
        ("tried.1", "name=adam, b1=0.9"),
        ("tried.2", "name=sgd"),
    ):
        assert words[words.index(key) + 1] == value


def test_train_records_what_report_shows(train, runs_dir):
    assert train() == 0
    recorded = json.loads((runs_dir / "digits" / "environment.json").read_text())
    page, charts = report(runs_dir / "digits")
    assert {"Recorded when training began.", recorded["cpu"]} <= set(page.words)
    assert "digits, trained by adam" in " ".join(page.words)
    assert len(charts["Gradient"].lines()) == 1 + 4


def test_nothing_is_loaded_and_nothing_escapes(write_run):
    evil = "</script><script>alert(1)</script>$body"
    folder = write_run(moved={evil: 1.0}, figures={f"update_norm/{evil}": 1.0})
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('"adam"', f"'{evil}'"))
    page, charts = report(folder)
    assert page.loaded == ["data:,"]
    assert page.tags.count("script") == len(page.scripts) == 3
    assert evil in page.words
    assert f"trained by {evil}," in " ".join(page.words)
    assert list(charts["Distance"].lines()) == [f"{evil} (moved 1)"]
    styles = re.search(
        r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.DOTALL
    )[1]
    assert "url(" not in styles and "@import" not in styles


STUDY = {
    ("adam", (("learning_rate", 0.001), ("b2", 0.999))): [0.5, 0.25],
    ("adam", (("learning_rate", 0.01), ("b2", 0.999))): [0.125, 0.375],
    ("adam", (("learning_rate", 1.0), ("b2", 0.999))): [1.0, NAN],
    ("sgd", (("learning_rate", 0.1),)): [1.0, 2.0],
}


def test_a_study_over_seeds(write_study):
    page, charts = report(write_study(STUDY))
    chart = charts["Test loss"]
    names = ["adam, learning_rate=0.01", "adam, learning_rate=0.001", "sgd"]
    lost = "adam, learning_rate=1, 1 diverged"
    assert list(chart.lines()) == [*names, lost]  # the best first
    assert chart.lines()[names[0]] == [0.75, 0.5, 0.25]
    assert chart.lines("words")[names[0]][0].endswith("epoch 1: 0.75 (0.375 to 1.125)")
    assert chart.band()[:3] == [(1, 0.375, 1.125), (2, 0.25, 0.75), (3, 0.125, 0.375)]
    assert chart.lines()[lost] == [2.0, None, None]
    assert chart.band()[9:] == [(1, 1.0, 3.0)]
    assert charts["Training loss"].lines()["sgd"] == [2.25, 1.5, 0.75]
    assert "Test accuracy" not in charts  # the problem has none
    assert "2 optimizers, 4 settings, 2 seeds: 8 runs in all" in page.words
    assert "0.25 (0.125 to 0.375)" in page.words
    row = page.words[page.words.index("0.25 (0.125 to 0.375)") - 3 :][:5]
    assert row[:2] == ["adam", "0.01"]  # b2 does not vary
    assert page.words.count("0 of 2") == 3
    assert "1 of 2" in page.words


def test_the_final_loss_over_one_setting(write_study):
    _, charts = report(write_study(STUDY))
    chart = charts["Final test loss over learning_rate"]
    assert chart.lines("x") == {"adam": [0.001, 0.01, 1]}
    assert chart.lines() == {"adam": [0.375, 0.25, None]}
    assert chart.axis("x")["scale"]["type"] == "log"
    [cross] = chart.all("text")
    assert cross["rows"] == [{"x": 1.0}]  # it has diverged
    assert not any("b2" in title for title in charts)  # it does not vary


def test_a_setting_that_may_be_0_has_places_in_order(write_study):
    settings = [(("weight_decay", x),) for x in (0.1, 0, 0.001)]
    _, charts = report(write_study({("adamw", s): [0.5] for s in settings}))
    chart = charts["Final training loss over weight_decay"]
    assert chart.lines("x")["adamw"] == ["0", "0.001", "0.1"]
    assert chart.axis("x")["type"] == "ordinal"
    assert chart.axis("x")["scale"]["domain"] == ["0", "0.001", "0.1"]


def test_the_final_loss_over_two_settings(write_study):
    losses = {
        **{(0.1, 0): [NAN], (0.1, 0.5): [0.5], (0.001, 0): [1e-3]},
        **{(0.001, 0.5): [1e3], (0.01, 0): [0.25, 0.75], (0.01, 0.5): [4.0]},
    }
    study = {("adamw", (("b1", y), ("lr", x))): loss for (x, y), loss in losses.items()}
    page, charts = report(write_study(study))
    chart = charts["Final test loss of adamw"]
    cells, scored, frame = chart.all("rect")
    assert cells["encoding"]["x"]["scale"]["domain"] == ["0", "0.5"]
    assert cells["encoding"]["y"]["scale"]["domain"] == ["0.1", "0.01", "0.001"]
    found = {(row["y"], row["x"]): row["score"] for row in cells["rows"]}
    expected = {
        (str(x), str(y)): None if math.isnan(loss[0]) else np.mean(loss)
        for (x, y), loss in losses.items()
    }
    assert found == expected
    texts = sorted(row["text"] for row in cells["rows"])
    assert texts == ["0.001", "0.5", "0.5", "1000", "4", "\N{MULTIPLICATION SIGN}"]
    assert scored["encoding"]["color"]["scale"]["domain"] == [1e-3, 0.03]
    assert [(row["x"], row["y"]) for row in frame["rows"]] == [("0", "0.001")]
    words = " ".join(page.words)
    assert "1 of 6 settings diverged. The colours end at 30 times the best." in words


def test_decays_near_1_keep_their_names(write_study):
    decays = [0.9, 0.99999, 0.999999]
    study = {
        ("adam", (("lr", lr), ("b2", b2))): [lr / b2]
        for lr in (0.1, 1.0)
        for b2 in decays
    }
    page, charts = report(write_study(study))
    cells = charts["Final test loss of adam"].all("rect")[0]
    shown = ["0.999999", "0.99999", "0.9"]
    assert cells["encoding"]["y"]["scale"]["domain"] == shown
    names = [f"lr={lr}, b2={b2}" for lr in ("0.1", "1") for b2 in shown]
    assert set(charts["Test loss"].lines()) == set(names)
    assert {*names, *shown} <= set(page.words)


def test_decays_near_1_have_places_of_their_own(write_study):
    decays = [0.9, 0.99999, 0.999999]
    study = {("adam", (("b2", b2),)): [b2] for b2 in decays}
    _, charts = report(write_study(study))
    chart = charts["Final test loss over b2"]
    assert chart.lines("x")["adam"] == ["0.9", "0.99999", "0.999999"]


def test_a_random_draw_is_dots_and_the_best_twelve_lines(write_study):
    draw = [(("lr", 10.0**-n), ("b1", 0.8 + n / 100)) for n in range(1, 15)]
    losses = {("adam", setting): [float(n)] for n, setting in enumerate(draw, start=1)}
    page, charts = report(write_study(losses))
    assert len(charts["Test loss"].lines()) == 12
    assert "The best 12 of 14." in " ".join(page.words)
    for key in ("lr", "b1"):
        chart = charts[f"Final test loss over {key}"]
        pairs = {row["x"]: row["y"] for row in chart.rows}
        assert pairs == {dict(setting)[key]: n for n, setting in enumerate(draw, 1)}
        assert not any(row["joined"] for row in chart.rows)
    assert charts["Final test loss over b1"].axis("x")["type"] == "quantitative"
    assert "type" not in charts["Final test loss over b1"].axis("x")["scale"]


def test_what_has_diverged_altogether(write_study, write_run, tmp_path):
    page, charts = report(write_study({("adam", (("lr", 1.0),)): [NAN, NAN]}))
    assert "none: all have diverged" in page.words
    assert charts["Test loss"].lines()["adam, 2 diverged"] == [1.0, None, None]
    runs = [write_run(name, test_loss=NAN) for name in ("first", "second")]
    page, charts = report(*runs, out=tmp_path / "both.html")
    assert "none: all have diverged" in page.words


def test_members_are_gathered_whatever_the_order_of_their_keys(write_study):
    members = read_members(write_study(STUDY))
    turned = [m._replace(setting=dict(reversed(m.setting.items()))) for m in members]
    outcomes = group_members([*members[:3], *turned[3:]])
    assert [x.curves("test_loss").shape for x in outcomes] == [(2, 3)] * 4
    assert label(outcomes[0], outcomes[:1]) == "adam"  # nothing varies


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("page", ["#ffffff", "#14181d"])
def test_lines_can_be_seen_on_either_page(colour, page):
    # The contrast of the Web Content Accessibility Guidelines, 2.1.
    def luminance(text):
        shares = np.array([int(text[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        linear = np.where(
            shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    low, high = sorted((luminance(colour), luminance(page)))
    assert high / low >= 3


BROKEN = {
    "no config": ("config.toml", None, r"mine is no run: .*config.toml: No such file"),
    "a broken config": ("config.toml", "a = = 1", r"config.toml is broken: Invalid"),
    "a config that is no text": (
        "config.toml",
        b"\xff",
        r"toml is broken: 'utf-8'",
    ),
    "no metrics": ("metrics.jsonl", None, r"mine is no run: .*metrics.jsonl: No such"),
    "broken metrics": ("metrics.jsonl", "3\n", r"metrics.jsonl is broken: line 1"),
    "an environment that is no JSON": (
        "environment.json",
        "{",
        r"environment.json is b",
    ),
    "an environment that is no table": ("environment.json", "[]", r"it is no table"),
    "no member": ("members.jsonl", "", r"mine has no finished member yet"),
    "a member that is no text": (
        "members.jsonl",
        b"\xff\n",
        r"jsonl is broken: line 1 is no member",
    ),
    "a broken member": ("members.jsonl", "{}\n", r"line 1 is no member of a study of"),
}
MEMBER = {
    **{"optimizer": "adam", "setting": {}, "seed": 0, "train_loss": [1.0]},
    **{"test_loss": [1.0], "metrics": {"accuracy": [None]}},
}
BROKEN |= {
    f"a member's {key}": (
        "members.jsonl",
        json.dumps(MEMBER | {key: value}) + "\n",
        r"members.jsonl is broken: line 1 is no member",
    )
    for key, value in {
        **{"optimizer": 3, "setting": [], "train_loss": ["x"], "test_loss": []},
        **{"metrics": None, "unknown": 1},
    }.items()
}
TWO = MEMBER | {"train_loss": [1.0, 1.0], "test_loss": [1.0, 1.0], "metrics": {}}
BROKEN["members of other lengths"] = (
    "members.jsonl",
    f"{json.dumps(MEMBER)}\n{json.dumps(TWO)}\n",
    r"members.jsonl is broken: its members differ in their epochs",
)


def only_error(capfd):
    """Give the single line on stderr, without its prefix."""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("adam-jax: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_sentence(name, content, message, write_run, capfd):
    folder = write_run()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    assert main(["report", str(folder)]) == 2
    assert re.search(message, only_error(capfd))
    assert not (folder / "report.html").exists()


def test_its_place_is_named_as_the_folders_are(write_run, tmp_path, monkeypatch, capfd):
    for name in ("a", "b"):
        write_run(name)
    (tmp_path / "link").symlink_to("a/..")
    monkeypatch.chdir(tmp_path / "a")
    for folders, page in (
        (["."], "report.html"),
        (["../b"], "../b/report.html"),
        ([".", "../b"], "../report.html"),
        ([".", "../link/b"], "../report.html"),
        ([".", str(tmp_path / "b")], str(tmp_path / "report.html")),
    ):
        assert main(["report", *folders]) == 0
        assert capfd.readouterr().out == f"{page}\n"
        assert (tmp_path / "a" / page).exists()


def test_folders_that_cannot_be_reported_together(write_run, write_study, capfd):
    run, study = write_run(), write_study(STUDY)
    for folders, message in (
        ((run, study), r"study is a study: report it alone"),
        ((run, run / ".." / "mine"), r"mine is named twice: name each run once"),
        ((run, "nowhere"), r"nowhere is no run: nowhere.config.toml: No such file"),
        (("x" * 300,), r"xx/config.toml: File name too long; adam-jax train makes one"),
        ((), r"arguments are required: runs \(see adam-jax report --help\)"),
    ):
        assert main(["report", *map(str, folders)]) == 2
        assert re.search(message, only_error(capfd))


def test_a_page_that_cannot_be_written(write_run, tmp_path, capfd, monkeypatch):
    folder = write_run()
    for out, message in (
        (tmp_path, r"the page would be .*, but that is a folder; see --out"),
        (
            tmp_path / "no" / "a.html",
            r"but that is in no folder that exists",
        ),
        (tmp_path / ("x" * 300), r"cannot write the results: .*File name too long"),
    ):
        assert main(["report", str(folder), f"--out={out}"]) == 2
        assert re.search(message, only_error(capfd))

    def fail(*_args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(type(folder), "replace", fail)
    before = sorted(folder.iterdir())
    assert main(["report", str(folder)]) == 2
    assert "cannot write the results: [Errno 28] No space left" in only_error(capfd)
    assert sorted(folder.iterdir()) == before


def test_help_has_an_example(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])
    assert "adam-jax report runs/digits_mlp" in capfd.readouterr().out
