"""The page of `adam-jax report` in a browser: headless Chromium, as Debian ships it."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

from adam_jax.experiments.cli import main

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 120_000  # milliseconds: other tests may be at work
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Two optimizers on a grid of two hyperparameters: 12 long names, and heat maps.
GRID = {
    (name, (("learning_rate", rate), ("weight_decay", decay))): [rate + decay, 0.25]
    for name in ("adam", "adamw")
    for rate in (0.5, 0.125, 0.25)
    for decay in (0.0, 1.0, 2.0)
}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"there is no {' and no '.join(NAMES)}: apt-get install chromium",
)


@pytest.fixture(scope="module")
def browser():
    """Start Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Give a function that reports folders, and opens the page.

    Whatever the page says on the console and whatever it loads but itself is a fault.
    """
    faults, contexts = [], []

    def open_page(*folders, size=DESKTOP, **options):
        out = folders[0] / "page.html"
        assert main(["report", *map(str, folders), f"--out={out}"]) == 0
        contexts.append(browser.new_context(viewport=size, **options))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url))
        page.goto(out.as_uri())
        assert faults.pop(0) == out.as_uri()
        page.wait_for_function("() => drawn.then(() => true)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def find_chart(page, title):
    """Give the chart under a title."""
    return page.locator("figure", has=page.get_by_text(title, exact=True))


def measure_width(page):
    """Give the width of what can be scrolled to, and the farthest right end of it."""
    return page.evaluate(
        "() => [document.documentElement.scrollWidth, Math.max(...[...document"
        ".querySelectorAll('figure, table, .plot svg, .legend button, h1, dd, td')]"
        ".map((x) => x.getBoundingClientRect().right))]"
    )


def test_pointing_at_a_curve_shows_its_value(visit, write_run):
    chart = find_chart(visit(write_run()), "Loss")
    chart.scroll_into_view_if_needed()
    # The second of four points of the training loss: it is 2 / 2.
    chart.locator(".mark-symbol path").nth(1).hover(force=True)
    shown = chart.page.locator("#vg-tooltip-element.visible")
    shown.wait_for()
    assert shown.text_content() == "training, epoch 2: 1"


def test_the_legend_switches_curves(visit, write_run):
    chart = find_chart(visit(write_run("a"), write_run("b")), "Loss")
    assert chart.locator(".mark-line path").count() == 4  # test and training loss
    for count in (2, 4):
        chart.get_by_role("button", name="a", exact=True).click()
        chart.page.wait_for_function(
            f"(chart) => chart.querySelectorAll('.mark-line path').length === {count}",
            arg=chart.element_handle(),
        )


def test_a_run_fits_a_phone(visit, write_run):
    page = visit(write_run(), size=PHONE, has_touch=True, is_mobile=True)
    scrolled, right = measure_width(page)
    assert scrolled == 390
    assert right <= 390
    assert not page.locator("thead").first.is_visible()  # its rows are cards


def test_a_study_fits_a_phone_and_a_window_that_narrows(visit, write_study):
    page = visit(write_study(GRID))
    heat_map = find_chart(page, "Final test loss of adamw")
    cells = heat_map.locator(".mark-text.layer_2_marks text").all_text_contents()
    losses = [sum(loss) / 2 for (name, _), loss in GRID.items() if name == "adamw"]
    assert sorted(cells) == sorted(f"{loss:.4g}" for loss in losses)
    chart = find_chart(page, "Test loss")
    assert chart.get_by_role("button").count() == 12
    page.set_viewport_size(PHONE)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plot svg')]"
        ".every((x) => x.getBoundingClientRect().right <= 390)"
    )
    assert max(measure_width(page)) == 390
    # The legend takes more lines than before, and the curves keep their height.
    plot, legend = (chart.locator(x).bounding_box() for x in (".plot svg", ".legend"))
    assert plot["y"] + plot["height"] <= legend["y"]
    assert plot["height"] > 250
    assert legend["height"] > 12 * 15


def test_a_dark_page_is_dark(visit, write_run):
    page = visit(write_run(), color_scheme="dark")

    def luminance(selector, key):
        colour = page.locator(selector).first.evaluate(
            f"(x) => getComputedStyle(x).{key}"
        )
        return sum(map(int, colour.strip("rgb()").split(",")))

    assert luminance("body", "backgroundColor") < 100
    assert luminance("h1", "color") > 600
    assert luminance(".legend button", "color") > 600
    label = ".role-axis-label text"
    assert luminance(label, "fill") > 400
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        f"() => getComputedStyle(document.querySelector('{label}')).fill"
        " === getComputedStyle(document.querySelector('figcaption')).color"
    )
    assert luminance(label, "fill") < 400


def test_a_script_in_a_name_is_not_run(visit, write_run):
    evil = "</script><img src=x onerror=alert(1)><script>alert(1)</script>"
    folder = write_run(moved={evil: 1.0})
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('"adam"', f"'{evil}'"))
    page = visit(folder)  # an alert would be a fault: the image would be asked for
    assert page.locator("img").count() == 0
    chart = page.locator("figure", has=page.get_by_text("Distance: how far"))
    assert chart.get_by_role("button").all_text_contents() == [f"{evil} (moved 1)"]
