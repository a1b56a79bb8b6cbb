from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.report import figures
from prunekit.report.figures import Metric
from prunekit.report.reading import Entry

PLAIN = str.maketrans({"\u2212": "-", ",": None})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.999, "2.00"),
        (9.996, "10.0"),
        (0.01234, "0.0123"),
        (12345.6, "12,346"),
        (99.95, "100"),
        (-2.5, "\u22122.50"),
        (0.0000123, "1.23 \u00d7 10⁻⁵"),
        (float("inf"), "not finite"),
    ],
)
def test_three_significant_figures(value, text):
    assert figures.significant(value) == text


@given(st.floats(min_value=1e-3, max_value=1e12) | st.floats(min_value=-1e12, max_value=-1e-3))
def test_rounding_is_off_by_half_a_unit_of_the_third_figure_at_most(value):
    text = figures.significant(value).translate(PLAIN)
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    assert abs(float(text) - value) <= 0.5000001 * max(unit, 1e-3 * abs(value)) or abs(value) >= 100
    assert abs(float(text) - value) <= 0.5 or abs(value) < 100
    assert len(text.lstrip("-0.").replace(".", "")) <= 3 or abs(value) >= 100


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.04, 1, "0.0"), (-0.04, 1, "0.0"), (-1.25, 2, "\u22121.25"), (1234.5, 1, "+1,234.5")],
)
def test_a_change_has_a_sign_and_a_zero_none(value, decimals, text):
    assert figures.signed(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1000, "1.00 kB"), (1_893_410, "1.89 MB"), (999_999, "1.00 MB")]
)
def test_bytes_have_decimal_prefixes(value, text):
    shown = figures.scaled(Entry(value, "x"), "B")
    assert shown.text.replace("\u202f", " ") == text
    assert (shown.raw, shown.title) == (str(value), f"{value} · x")


@pytest.mark.parametrize(("value", "text"), [(2, "2"), (0.05, "0.05"), (1e-4, "0.0001"), (1e-6, "10⁻⁶")])
def test_what_was_set_is_shown_as_set(value, text):
    assert figures.as_set(value) == text


def test_worked_out_numbers_name_what_they_come_from():
    figure = figures.removed(Entry(200, "a#x"), Entry(150, "b#y"))
    assert (figure.text, figure.raw, figure.source) == ("25.0\u202f%", "0.25", "from a#x and b#y")


@pytest.mark.parametrize("before", [None, 0, "200", float("nan")])
def test_nothing_is_worked_out_from_nothing(before):
    figure = figures.removed(Entry(before, "a"), Entry(150, "b"))
    assert (figure.text, figure.measured) == ("not measured", False)


def test_shares_and_other_metrics_are_written_differently():
    share, other = Metric("accuracy", is_share=True), Metric("f1", is_share=False)
    assert share.level(Entry(0.98765, ""), 900).text == "98.8\u202f%"
    assert share.level(Entry(0.98765, ""), 10_000).text == "98.77\u202f%"
    assert share.change(Entry(-0.0123, ""), 900).text == "\u22121.2"
    assert other.level(Entry(0.98765, ""), 900).text == "0.988"
    assert other.change(Entry(0.0123, ""), 900).text == "+0.0123"


@pytest.mark.parametrize(
    ("value", "text"), [(0.27, "0.27"), (0.0004, "< 0.001"), (1.0, "1.0"), (None, "not measured")]
)
def test_probabilities(value, text):
    assert figures.probability(Entry(value, "x")).text == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-11-21T04:50:31+00:00", "2026-11-21 04:50 UTC"),
        ("2026-11-21T06:50:31+02:00", "2026-11-21 04:50 UTC"),
        ("yesterday", "yesterday"),
        ("", ""),
    ],
)
def test_moments(moment, text):
    assert figures.readable(moment) == text
