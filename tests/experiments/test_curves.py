"""Areas by integration, critical sparsities and collapses by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from experiments.results.curves import area, collapsed, common_span, critical_sparsity
from tests.experiments.rows import frame, row, start


@given(
    points=st.dictionaries(st.floats(0.001, 1), st.floats(0, 1), min_size=2, max_size=8),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_area_is_the_integral_over_log_density(points, ends):
    densities = sorted(points)
    least, most = densities[0], densities[-1]
    low, high = sorted(least + end * (most - least) for end in ends)
    values = [points[density] for density in densities]
    if high / low < 1.001:
        return
    knots = [knot for knot in np.log(densities) if math.log(low) < knot < math.log(high)]
    expected, _ = integrate.quad(
        lambda x: np.interp(x, np.log(densities), values),
        math.log(low),
        math.log(high),
        points=knots or None,
        limit=200,
    )
    found = area(densities[::-1], values[::-1], low, high)
    assert found == pytest.approx(expected / math.log(high / low), abs=1e-6)
    assert min(values) - 1e-12 <= found <= max(values) + 1e-12


def test_a_curve_that_does_not_reach_has_no_area():
    assert math.isnan(area([0.5, 0.1], [0.9, 0.8], 0.05, 0.5))
    assert math.isnan(area([0.5, 0.1], [0.9, 0.8], 0.1, 0.6))
    assert math.isnan(area([0.5], [0.9], 0.5, 0.5))
    assert area([0.5, 0.1], [0.9, 0.8], 0.1, 0.5) == pytest.approx(0.85)


def test_a_point_where_nothing_is_kept_has_no_logarithm_and_is_left_out():
    assert area([0.5, 0.1, 0.0], [0.9, 0.8, 0.1], 0.1, 0.5) == pytest.approx(0.85)
    assert math.isnan(area([0.5, 0.1, 0.0], [0.9, 0.8, 0.1], 0.05, 0.5))  # the last living point is not repeated
    rows = [row("a", 0, 1, 0.5), row("a", 0, 2, 0.1), row("b", 0, 1, 0.5), row("b", 0, 2, 0.2), row("b", 0, 3, 0.0)]
    assert common_span(frame(*rows).assign(method=lambda table: table["scorer"])) == (0.2, 0.5)


def test_the_common_span_is_the_narrowest():
    rows = [row("a", 0, 1, 0.5), row("a", 0, 2, 0.1), row("b", 0, 1, 0.8), row("b", 0, 2, 0.2)]
    points = frame(*rows).assign(method=lambda table: table["scorer"])
    assert common_span(points) == (0.2, 0.5)


def test_a_loss_of_exactly_a_point_is_within_a_point():
    for correct in range(9000, 9990):
        assert critical_sparsity([0.5], [(correct + 100) / 10_000 - correct / 10_000], 0.01) == 0.5


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.0, 0.005, 0.01, 0.2], 0.9),
        ([0.0, 0.02, 0.0, 0.0], 0.5),  # luck beyond a failure does not count
        ([0.02, 0.0, 0.0, 0.0], 0.0),
        ([-0.1, -0.1, -0.1, -0.1], 0.99),
        ([0.0, math.nan, 0.0, 0.0], 0.5),
    ],
)
def test_critical_sparsities(losses, expected):
    sparsities = [0.5, 0.8, 0.9, 0.99]
    assert critical_sparsity(sparsities, losses, 0.01) == expected
    assert critical_sparsity(sparsities[::-1], losses[::-1], 0.01) == expected


def test_collapsed_is_what_lost_nine_tenths_of_what_dense_has_above_chance():
    config = {"data": {"classes": 10}}
    accuracies = [0.97, 0.188, 0.186, 0.1]  # the limit: 0.1 + 0.1 · 0.87 = 0.187
    rows = [row(level=level, accuracy=a, config=config) for level, a in enumerate(accuracies, start=1)]
    table = frame(start(accuracy=0.97, config=config), *rows)
    points = table[table["level"] > 0]
    assert collapsed(points, table).tolist() == [0, 0, 1, 1]
    assert collapsed(points.assign(test_loss=1.0), table, "test_loss").isna().all()


def test_without_classes_or_dense_network_nothing_is_known_of_collapse():
    table = frame(start(), row())
    assert collapsed(table[table["level"] > 0], table).isna().all()
    known = frame(row(config={"data": {"classes": 10}}))
    assert collapsed(known, known).isna().all()
    assert isinstance(collapsed(known, known), pd.Series)
