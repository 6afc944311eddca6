"""A figure is checked through what it draws: lines, bands and ticks against the numbers they stand for."""

import itertools
import math
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from experiments.records.values import resolve
from experiments.results.figures import accuracy, save
from experiments.results.figures.axes import TIMES, percent, ratio
from experiments.results.intervals import Interval

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
DENSE = {"dense": Interval(0.97, 0.96, 0.98, 0.004, 3)}


def curve(method: str, means, *, half=0.01, n=3, densities=DENSITIES) -> list[dict]:
    half = math.nan if n == 1 else half
    return [
        {
            "method": method,
            "requested_density": density,
            "density": density,
            "sparsity": 1 - density,
            "compression": 1 / density if density else math.inf,
            "n": n,
            "mean": mean,
            "std": half,
            "low": mean - half,
            "high": mean + half,
            "median": mean,
            "collapsed": 0.0,
            "seeds": tuple(range(n)),
        }
        for density, mean in zip(densities, means, strict=True)
    ]


GOOD = (0.968, 0.965, 0.96, 0.95, 0.94, 0.92)
POOR = (0.95, 0.93, 0.9, 0.7, 0.4, 0.1)


@pytest.fixture
def summary() -> pd.DataFrame:
    return pd.DataFrame(curve("magnitude", GOOD) + curve("random", POOR, half=0.05))


def line(panel: Axes, label: str):
    return next(artist for artist in panel.get_lines() if artist.get_label().startswith(label))


def bands(panel: Axes) -> list[PolyCollection]:
    return [artist for artist in panel.collections if isinstance(artist, PolyCollection)]


def edges(band: PolyCollection) -> dict[float, tuple[float, float]]:
    """x -> lower and upper edge."""
    x, y = band.get_paths()[0].vertices.T
    return {float(at): (float(y[x == at].min()), float(y[x == at].max())) for at in np.unique(x)}


def places(rows: pd.DataFrame, x: str) -> np.ndarray:
    return (rows["compression"] if x == "compression" else 100 * rows["sparsity"]).to_numpy()


@pytest.mark.parametrize("x", ["compression", "sparsity"])
def test_lines_and_bands_are_the_numbers_of_the_summary_and_of_the_csv(summary, x, tmp_path):
    figure = accuracy(summary, DENSE, x)
    *_, path = save(figure, tmp_path / "figure", summary)
    written = pd.read_csv(path, converters=dict.fromkeys(("mean", "low", "high"), float))  # to the last bit
    assert written[["mean", "low", "high"]].equals(summary[["mean", "low", "high"]])

    assert len(figure.axes) == 2  # the full range and the neighbourhood of the dense network show the same
    for panel in figure.axes:
        for place, method in enumerate(("magnitude", "random")):
            rows = written[written["method"] == method]
            drawn = line(panel, method)
            np.testing.assert_array_equal(drawn.get_xdata(), places(rows, x))
            np.testing.assert_allclose(drawn.get_ydata(), 100 * rows["mean"], rtol=1e-15)
            assert drawn.get_marker() not in ("", "None", None)
            found = edges(bands(panel)[place])
            assert list(found) == list(places(rows, x))
            np.testing.assert_allclose(list(found.values()), 100 * rows[["low", "high"]], rtol=1e-15)
        assert not [artist for artist in panel.collections if isinstance(artist, LineCollection)]


def test_points_lie_at_the_realised_density_in_order(summary):
    shuffled = summary.sample(frac=1, random_state=0).assign(density=lambda rows: rows["density"] * 1.001)
    shuffled["compression"] = 1 / shuffled["density"]
    drawn = line(accuracy(shuffled, DENSE).axes[0], "magnitude")
    np.testing.assert_allclose(drawn.get_xdata(), 1 / (1.001 * np.array(DENSITIES)))
    np.testing.assert_allclose(drawn.get_ydata(), 100 * np.array(GOOD))


def test_the_dense_network_is_a_line_with_its_own_band(summary):
    for panel in accuracy(summary, DENSE).axes:
        assert set(np.ravel(line(panel, "dense").get_ydata())) == {97.0}
        (band,) = panel.patches
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((96, 98))
    alone = accuracy(summary, {"dense": Interval(0.97, math.nan, math.nan, math.nan, 1)}).axes[0]
    assert not alone.patches
    two = {"dense (model=a)": DENSE["dense"], "dense (model=b)": Interval(0.9, 0.89, 0.91, 0.004, 3)}
    first, second = (line(accuracy(summary, two).axes[0], name) for name in two)
    assert first.get_linestyle() != second.get_linestyle()


def test_the_legend_says_n_and_what_the_band_is(summary):
    rows = summary.to_dict("records") + curve("snip", GOOD, n=1)
    rows[0]["n"] = 2
    legend = accuracy(pd.DataFrame(rows), DENSE).legends[0]
    assert legend.get_title().get_text() == "Mean and 95 % t-interval over seeds"
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense, n = 3",
        "magnitude, n = 2\N{EN DASH}3",
        "random, n = 3",
        "snip, n = 1 (no interval)",
    ]


def test_one_seed_has_no_band():
    panel = accuracy(pd.DataFrame(curve("magnitude", GOOD, n=1)), DENSE).axes[0]
    assert not any(len(path.vertices) for band in bands(panel) for path in band.get_paths())
    assert not [artist for artist in panel.collections if isinstance(artist, LineCollection)]


def test_a_point_that_stands_alone_shows_its_interval_as_a_bar():
    rows = curve("magnitude", GOOD, n=1)
    rows[2] |= {"low": 0.9, "high": 0.99, "n": 3}
    panel = accuracy(pd.DataFrame(rows), DENSE).axes[0]
    (bar,) = (artist for artist in panel.collections if isinstance(artist, LineCollection))
    np.testing.assert_allclose(bar.get_segments(), [[[10, 90], [10, 99]]])


def labels(axis) -> list[str]:
    return [axis.get_major_formatter()(at, place) for place, at in enumerate(axis.get_majorticklocs())]


def test_ticks_are_the_operating_points(summary):
    figure = accuracy(summary, DENSE)
    upper, lower = figure.axes
    assert lower.get_xscale() == upper.get_xscale() == "log"
    assert labels(lower.xaxis) == [f"{ratio}\N{MULTIPLICATION SIGN}" for ratio in (2, 5, 10, 20, 50, 100)]
    (top,) = upper.child_axes
    assert labels(top.xaxis) == ["50 %", "80 %", "90 %", "95 %", "98 %", "99 %"]
    np.testing.assert_allclose(top.xaxis.get_majorticklocs(), lower.xaxis.get_majorticklocs())
    assert lower.get_xlabel().startswith("Compression ratio")
    assert "Sparsity" in top.get_xlabel()

    panel = accuracy(summary, DENSE, "sparsity").axes[-1]
    assert panel.get_xscale() == "linear"
    assert labels(panel.xaxis) == ["50", "80", "90", "95", "99"]  # 98 has no room: a small tick without a label
    np.testing.assert_allclose(panel.xaxis.get_minorticklocs(), [98])


def test_coarse_units_are_ticked_where_they_are(summary):
    coarse = summary.assign(density=summary["density"] * 1.1)
    coarse = coarse.assign(compression=1 / coarse["density"], sparsity=1 - coarse["density"])
    ticks = accuracy(coarse, DENSE).axes[-1].xaxis.get_majorticklocs()
    np.testing.assert_allclose(ticks, np.unique(coarse["compression"].round(9)))


def ladder(count: int) -> pd.DataFrame:
    densities = [0.8**level for level in range(1, count + 1)]
    return pd.DataFrame(curve("magnitude", np.linspace(0.97, 0.3, count), densities=densities))


CASES = {
    "four scorers": lambda: pd.DataFrame([row for name in ("a", "b", "c", "d") for row in curve(name, GOOD)]),
    "ladder of 20": lambda: ladder(20),
    "ladder of 60": lambda: ladder(60),
    "one point": lambda: pd.DataFrame(curve("magnitude", (0.9,), densities=(0.1,))),
    "twelve methods": lambda: pd.DataFrame(
        [row for i in range(12) for row in curve(f"magnitude (recovery.epochs={i})", np.array(POOR) - i / 99)]
    ),
    "long label": lambda: pd.DataFrame(
        curve("magnitude (" + ", ".join(f"key_{i}=value" for i in range(30)) + ")", GOOD)
    ),
}


@pytest.mark.parametrize("x", ["compression", "sparsity"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_clipped_and_nothing_overlaps(case, x):
    figure = accuracy(CASES[case](), DENSE, x)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox

    def inside(box):
        return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.width + 1 and box.y1 <= page.height + 1

    legend = figure.legends[0].get_window_extent(renderer)
    assert inside(legend)
    for panel in figure.axes:
        assert inside(panel.get_tightbbox(renderer))
        assert panel.get_tightbbox(renderer).y0 >= legend.y1
        assert panel.get_window_extent(renderer).height > 100  # the legend takes nothing from the axes
    for axes in (figure.axes[-1], *figure.axes[0].child_axes):
        boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels() if label.get_text()]
        assert boxes
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_many_methods_stay_apart():
    summary = pd.DataFrame([row for place in range(24) for row in curve(f"method {place}", GOOD)])
    panel = accuracy(summary, DENSE).axes[0]
    lines = [line(panel, f"method {place},") for place in range(24)]
    assert len({(drawn.get_color(), drawn.get_marker()) for drawn in lines}) == 24
    assert len({(drawn.get_color(), drawn.get_linestyle()) for drawn in lines}) == 24
    colours = {drawn.get_color() for drawn in lines}
    assert colours <= {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"}  # Okabe and Ito


def test_the_second_panel_shows_what_lies_near_the_dense_line(summary):
    upper, lower = accuracy(summary, DENSE).axes
    low, high = lower.get_ylim()
    assert low <= 96  # the dense band is in it
    assert high >= 97
    assert high - low < (upper.get_ylim()[1] - upper.get_ylim()[0]) / 3
    inside = [mean for mean in (*GOOD, *POOR) if low <= 100 * mean <= high]
    assert len(inside) >= 6
    even = accuracy(pd.DataFrame(curve("magnitude", np.linspace(0.96, 0.1, 6))), DENSE)
    assert len(even.axes) == 1  # no crowd near the dense line
    assert even.axes[0].get_ylabel() == "Test accuracy (%)"


def test_the_full_range_holds_all_and_ends_at_what_is_possible():
    summary = pd.DataFrame(curve("magnitude", GOOD) + curve("random", POOR, half=0.5))
    low, high = accuracy(summary, DENSE).axes[0].get_ylim()
    assert -2 <= low <= 0
    assert 100 <= high <= 102
    low, high = accuracy(summary, DENSE, value="test_loss").axes[0].get_ylim()
    assert low < -0.4
    assert high > 1.45


def test_nothing_kept_is_said(summary):
    rows = [*summary.to_dict("records"), *curve("random", (0.1,), densities=(0.0,))]
    figure = accuracy(pd.DataFrame(rows), DENSE)
    assert len(line(figure.axes[0], "random").get_xdata()) == len(DENSITIES)
    assert "without points where nothing is kept" in figure.legends[0].get_title().get_text()
    figure = accuracy(pd.DataFrame(rows), DENSE, "sparsity")
    assert line(figure.axes[0], "random").get_xdata()[-1] == 100
    assert "without" not in figure.legends[0].get_title().get_text()
    accuracy(pd.DataFrame(curve("random", (0.1,), densities=(0.0,))), DENSE)  # no point at all, and no crash


def test_where_some_runs_collapsed_their_median_is_shown_beside_the_mean(summary):
    """Neither none nor all: then the mean is of two kinds of runs."""
    summary.loc[summary.index[-3:], "collapsed"] = [1 / 3, 2 / 3, 1.0]
    summary.loc[summary.index[-3:], "median"] = [0.8, 0.2, 0.1]
    figure = accuracy(summary, DENSE, "compression")
    hollow = [one for one in figure.axes[0].get_lines() if one.get_linestyle() == "None"]
    assert [one.get_ydata().tolist() for one in hollow] == [[80.0, 20.0]]
    assert [one.get_markerfacecolor() for one in hollow] == ["white"]
    (legend,) = figure.legends
    assert "hollow: the median" in legend.get_title().get_text()
    assert len(legend.get_texts()) == 3
    assert (
        "hollow"
        not in accuracy(summary.assign(collapsed=float("nan")), {}, "sparsity").legends[0].get_title().get_text()
    )


def test_a_label_is_text_whatever_is_in_it(summary, tmp_path):
    summary = summary.replace({"method": {"random": r"_taylor ($x^2, k=\frac{$, <b>)"}})
    figure = accuracy(summary, DENSE)
    assert figure.legends[0].get_texts()[2].get_text() == r"_taylor ($x^2, k=\frac{$, <b>), n = 3"
    save(figure, tmp_path / "figure", summary)


def test_another_x_is_refused(summary):
    with pytest.raises(ValueError, match="compression"):
        accuracy(summary, DENSE, "density")


# Files


def test_the_same_figure_gives_the_same_bytes(summary, tmp_path):
    (tmp_path / "b").mkdir()
    first = save(accuracy(summary, DENSE), tmp_path / "v1.2", summary)
    second = save(accuracy(summary, DENSE), tmp_path / "b" / "v1.2", summary)
    assert [path.name for path in first] == ["v1.2.pdf", "v1.2.png", "v1.2.csv"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    pdf, png, csv = (path.read_bytes() for path in first)
    assert pdf.startswith(b"%PDF")
    assert not re.search(rb"CreationDate|ModDate", pdf)
    assert png.startswith(b"\x89PNG")
    assert b"0 1 2\n" in csv


def test_both_files_have_one_layout_and_the_figure_stays_as_it_was(summary, tmp_path):
    figure = accuracy(summary, DENSE)
    figure.set_size_inches(5, 4)
    engine, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    pdf, png, _ = save(figure, tmp_path / "figure", summary)
    assert Image.open(png).size == (5 * 200, 4 * 200)
    assert re.search(rb"/MediaBox \[ 0 0 360 288 \]", pdf.read_bytes())
    assert (figure.get_layout_engine(), figure.canvas, figure.dpi) == (engine, canvas, dpi)
    figure.set_size_inches(6, 3)  # and so it can be changed and saved again
    wide, _, _ = save(figure, tmp_path / "wide", summary)
    assert b"/MediaBox [ 0 0 432 216 ]" in wide.read_bytes()
    below = figure.axes[-1].get_tightbbox().y0 - figure.legends[0].get_window_extent().y1
    assert below >= 0


def test_no_global_state_is_read_or_left(summary, tmp_path):
    before = save(accuracy(summary, DENSE), tmp_path / "before", summary)[1].read_bytes()
    with mpl.rc_context({"font.size": 30, "savefig.facecolor": "red", "axes.grid": False, "savefig.transparent": True}):
        mine = dict(mpl.rcParams)
        figure = accuracy(summary, DENSE)
        assert save(figure, tmp_path / "after", summary)[1].read_bytes() == before
        assert dict(mpl.rcParams) == mine
    assert type(figure) is Figure


# Words


@pytest.mark.parametrize(
    ("value", "label", "scale"),
    [
        ("test_accuracy", "Test accuracy (%)", 100),
        ("validation_accuracy", "Validation accuracy (%)", 100),
        ("test_loss", "Test loss (lower is better)", 1),
        ("macs", "Macs", 1),
    ],
)
def test_labels_of_values(value, label, scale):
    found = resolve(pd.DataFrame(), value)
    assert (found.label, found.scale) == (label, scale)


@pytest.mark.parametrize(
    ("density", "text"),
    [
        *((1, "0 %"), (0.8, "20 %"), (0.5, "50 %"), (0.1, "90 %"), (0.05, "95 %"), (0.01, "99 %"), (0.005, "99.5 %")),
        *((0.0005, "99.95 %"), (0.0123, "98.8 %"), (1e-4, "99.99 %"), (0.0, "100 %"), (0.07, "93 %")),
    ],
)
def test_percent(density, text):
    assert percent(density) == text


@pytest.mark.parametrize(
    ("compression", "text"),
    [(1, "1"), (2, "2"), (1.5625, "1.56"), (20, "20"), (86.736, "86.7"), (999.6, "1,000"), (1577.7, "1,578")],
)
def test_ratios(compression, text):
    assert ratio(compression) == text + TIMES
    assert ratio(math.inf, "x") == "infx"


@given(st.floats(1e-9, 1))
def test_percent_never_rounds_something_to_nothing(density):
    shown = float(percent(density).removesuffix(" %"))
    assert shown < 100
    assert 100 - shown == pytest.approx(100 * density, rel=0.06, abs=1e-12)
