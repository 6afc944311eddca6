"""The page in a browser: it renders, filters, computes what the tables say, and shows text from runs as text."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments import records
from experiments.report import main
from experiments.results import statistics
from experiments.results.comparison import comparisons
from experiments.results.intervals import mean_interval
from experiments.results.page import render
from tests.experiments.test_report import sweep

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver on this machine: install them (Debian: chromium chromium-driver)")
    from selenium import webdriver  # noqa: PLC0415
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(swept, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("page")
    assert main([str(swept / "runs"), "--store", str(swept / "store"), "--output", str(output)]) == 0
    return output / "report.html"


def opened(browser, page: Path, width: int = 1200) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    from selenium.webdriver.support.wait import WebDriverWait  # noqa: PLC0415

    ready = "return document.body !== null && document.body.dataset.ready === 'yes'"
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(ready), str(browser.get_log("browser")))


def lines(browser) -> dict[str, list]:
    """The drawn curves: name -> x, y and what hovering tells."""
    script = """return document.getElementById("plot").data.filter(t => t.mode === "lines+markers")
                .map(t => [t.name, t.x, t.y, t.customdata])"""
    return {name: [x, y, hover] for name, x, y, hover in browser.execute_script(script)}


def click(browser, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(browser, name: str, value: str) -> None:
    script = """const s = document.getElementById(arguments[0]); s.value = arguments[1];
                s.dispatchEvent(new Event("change"))"""
    browser.execute_script(script, name, value)


@pytest.mark.parametrize("width", [1200, 390])
def test_it_renders_without_an_error_and_fits(browser, page, width):
    opened(browser, page, width)
    assert browser.get_log("browser") == []
    script = "return [document.documentElement.scrollWidth, document.querySelectorAll('#plot svg').length]"
    across, drawings = browser.execute_script(script)
    assert across <= width
    assert drawings > 0
    assert browser.execute_script("return document.querySelectorAll('#heat svg').length") > 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0  # no network


def test_means_and_intervals_are_those_of_the_statistics(browser, page, swept):
    opened(browser, page)
    summary = statistics.summarise(records.read(swept / "runs"))
    drawn = lines(browser)
    assert set(drawn) == set(summary["method"])
    for method, rows in summary.groupby("method"):
        x, y, hover = drawn[method]
        rows = rows.sort_values("compression")
        assert x == pytest.approx(rows["compression"].tolist())
        assert y == pytest.approx((100 * rows["mean"]).tolist())
        halves = [float(told[0].removeprefix("± ")) for told in hover]
        assert halves == pytest.approx((50 * (rows["high"] - rows["low"])).tolist(), abs=0.006)
        assert [told[1] for told in hover] == [2, 2, 2]


def test_filters(browser, page, swept):
    opened(browser, page)
    click(browser, "input[data-filter=scorer][value=random]")
    assert list(lines(browser)) == ["magnitude"]
    click(browser, "input[data-filter=seed][value='1']")
    rows = statistics.points(records.read(swept / "runs")).query("seed == 0 and scorer == 'magnitude'")
    assert lines(browser)["magnitude"][1] == pytest.approx((100 * rows["test_accuracy"]).tolist())
    assert lines(browser)["magnitude"][2][0][0] == "one seed"
    click(browser, "input[data-filter=seed][value='0']")
    assert browser.execute_script("return document.getElementById('nothing').hidden") is False
    click(browser, "input[data-filter=seed][value='0']")
    assert list(lines(browser)) == ["magnitude"]
    assert browser.get_log("browser") == []


def test_other_axes_single_seeds_and_layers(browser, page, swept):
    opened(browser, page)
    summary = statistics.summarise(records.read(swept / "runs")).query("method == 'random'")
    expected = {"sparsity": 100 * summary["sparsity"], "macs": 100 * summary["macs"]}
    for axis, values in expected.items():
        script = (
            "const s = document.getElementById('axis'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
        )
        browser.execute_script(script, axis)
        assert sorted(lines(browser)["random"][0]) == pytest.approx(sorted(values))
    click(browser, "#seeds")
    script = "return document.getElementById('plot').data.filter(t => t.mode === 'markers').map(t => t.x.length)"
    assert browser.execute_script(script) == [6, 6]
    click(browser, "#near")
    low, _ = browser.execute_script("return document.getElementById('plot').layout.yaxis.range")
    assert low > 100 * summary["mean"].min()
    choose(browser, "method", "random")
    found = browser.execute_script("return document.getElementById('heat').data[0].z")
    assert found[0] == pytest.approx([1.699, 1.0, 0.301], abs=0.06)  # log10 of 50, 10 and 2 %, near enough in 1,024
    assert browser.get_log("browser") == []


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&lt;b&gt;"


def test_what_comes_from_runs_is_text(browser, tmp_path):
    sweep(tmp_path / "runs", scorers=("magnitude", "other"), config={"note": HOSTILE, "data": {"classes": 10}})
    for path in (tmp_path / "runs").glob("other-*/rows.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = [
            row | {"scorer": HOSTILE, "versions": {HOSTILE: HOSTILE}, "run": f"{HOSTILE}{row['seed']}"} for row in rows
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in told))
    assert main([str(tmp_path / "runs")]) == 0
    opened(browser, tmp_path / "runs" / "report.html")
    assert browser.get_log("browser") == []
    assert "owned" not in browser.title
    assert browser.execute_script("return document.images.length") == 0
    assert HOSTILE in browser.execute_script("return document.querySelector('#filters').textContent")
    assert HOSTILE in browser.execute_script("return document.querySelector('#configuration').textContent")
    legend = browser.execute_script("return document.querySelector('#plot .legend').textContent")
    assert "</script>" in legend


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name == "href" and not value.startswith(("#", "data:"))]


def test_links_lead_to_rows(swept, page):
    parser = Links()
    parser.feed(page.read_text().split("<script", maxsplit=1)[0])
    assert len(parser.found) == 4
    for link in parser.found:
        assert (page.parent / link).resolve().read_text().startswith('{"format"')


def test_one_seed_one_method_and_nothing_to_compare(tmp_path, browser):
    sweep(tmp_path, scorers=("magnitude",), seeds=(0,))
    assert main([str(tmp_path)]) == 0
    opened(browser, tmp_path / "report.html")
    assert browser.get_log("browser") == []
    assert lines(browser)["magnitude"][2][0][0] == "one seed"
    assert browser.execute_script("return document.querySelector('#comparison')") is None
    assert browser.execute_script("return document.querySelector('#layers').hidden") is True


def test_numbers_keep_their_zeros(tmp_path, browser):
    for path in sweep(tmp_path, scorers=("magnitude",)).glob("*/rows.jsonl"):
        path.write_text(path.read_text().replace("0.01,", "0.001,"))
    assert main([str(tmp_path)]) == 0
    opened(browser, tmp_path / "report.html")
    assert [hover[2:] for hover in lines(browser)["magnitude"][2]] == [["50", "2"], ["10", "10"], ["0.1", "1000"]]


def test_what_cannot_be_compared_is_said_and_costs_no_page(tmp_path, browser, capsys):
    sweep(tmp_path / "a", config={"training": {"epochs": 1}})
    for path in sweep(tmp_path / "b", ("random", "snip"), config={"training": {"epochs": 9}}).glob("*/rows.jsonl"):
        path.write_text(path.read_text().replace('"run": "', '"run": "b-').replace('"network', '"other'))
    assert main([str(tmp_path)]) == 0
    assert "not compared: dense (training.epochs=9): no method is called magnitude" in capsys.readouterr().out
    opened(browser, tmp_path / "report.html")
    shown = browser.execute_script("return document.querySelector('#comparison').innerText")
    assert "random against magnitude: over the whole curve no significant difference" in shown
    assert "Not compared: dense (training.epochs=9): no method is called magnitude" in shown


def test_the_same_rows_make_the_same_page(swept, tmp_path):
    frame = records.read(swept / "runs")
    compared, refused = comparisons(frame, "magnitude")
    pages = {render(frame, [], swept / "runs", tmp_path, "test_accuracy", compared, refused) for _ in range(2)}
    assert len(pages) == 1
    (page,) = pages
    accuracies = frame.query("level == 1 and scorer == 'random'")["test_accuracy"].astype(float)
    assert f"{100 * mean_interval(accuracies).mean:.2f}" in page


def test_the_page_has_the_interval_that_is_asked_for(tmp_path):
    sweep(tmp_path)
    assert main([str(tmp_path), "--interval", "bootstrap"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8").split("<script", maxsplit=1)[0]
    assert "97.00 [96.00, 98.00]" in text
    assert "±" not in text
    assert "Mean and 95 % bootstrap interval over n seeds" in text


def test_states_and_layers_that_are_not_told_cost_no_page(tmp_path, capsys):
    sweep(tmp_path)
    (tmp_path / "magnitude-0" / "state.json").write_text("{")
    path = tmp_path / "random-1" / "rows.jsonl"
    path.write_text(
        path.read_text().replace('"test_loss"', '"layers": [{"name": "a", "kept": 1, "total": 2}], "test_loss"')
    )
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "states of runs not known: " in out
    assert "not drawn: layers: some row has no layers" in out
    assert (tmp_path / "report.html").exists()


def test_the_page_has_whole_curves_too(page):
    text = page.read_text(encoding="utf-8").split("<script", maxsplit=1)[0]
    assert "Whole curves." in text
    assert "area: mean over log density from 0.5 to 0.02021;" in text  # as realised
    assert "sparsity within 1 point" in text
