from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.report.charts import Scale, histogram, latency_axis, polyline, round_step, scale_over, whisker

FINITE = st.floats(min_value=-1e6, max_value=1e6)


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_a_scale_holds_its_values_in_order(values):
    scale = scale_over(values)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert places[0] >= 0
    assert places[-1] <= 100


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_steps_are_round_and_near(step):
    found = round_step(step)
    digits = f"{found:.6e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in {"1", "2", "5"}
    assert 0.6 <= found / step <= 1.7


def test_ticks_stand_where_their_values_do():
    ticks = Scale(0.0, 0.5).ticks(5, factor=100, suffix="%")
    assert [(tick.at, tick.text) for tick in ticks] == [
        (0.0, "0%"),
        (20.0, "10%"),
        (40.0, "20%"),
        (60.0, "30%"),
        (80.0, "40%"),
        (100.0, "50%"),
    ]
    assert [tick.text for tick in Scale(-0.3, 0.1).ticks(4)] == [
        "\u22120.3",
        "\u22120.2",
        "\u22120.1",
        "0.0",
        "0.1",
    ]


def test_lines_run_upwards():
    assert polyline([(0, 0), (5, 10)], Scale(0, 10), Scale(0, 10)) == "0,100 50,0"


def test_whiskers_share_the_scale():
    assert whisker(-0.1, 0.0, -0.05, Scale(-0.1, 0.1)).__dict__ == {"low": 0.0, "high": 50.0, "at": 25.0}


def test_histogram_heights_are_numpys_counts():
    times = np.random.default_rng(0).gamma(3.0, 1.0, 500)
    outline, beyond = histogram(times, Scale(0.0, 8.0), 16)
    corners = [tuple(map(float, point.split(","))) for point in outline.split()]
    heights = np.array([100 - y for _, y in corners[1:-1:2]])
    counts, _ = np.histogram(times, bins=16, range=(0, 8))
    assert heights == pytest.approx(70 * counts / counts.max(), abs=0.01)
    assert beyond == np.mean(times > 8)


def test_the_latency_axis_begins_at_zero_and_holds_both_models():
    dense, pruned = np.linspace(3, 4, 100), np.linspace(1, 2, 100)
    axis = latency_axis(dense, pruned)
    assert axis.low == 0
    assert axis.high > np.percentile(dense, 99)
