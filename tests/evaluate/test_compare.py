import json
from dataclasses import asdict

import numpy as np
import pytest

from prunekit.errors import StorageError, UsageError, WorkloadError
from prunekit.evaluate import Comparison, compare, mcnemar_exact

N = 300


@pytest.fixture
def pair(make_table):
    """300 examples, labels 0, 1, 2 in turn: 40 lost, 10 gained, 5 wrong in another way, as index ranges."""
    dense, pruned = np.ones(N, bool), np.ones(N, bool)
    pruned[:40] = False
    dense[40:50] = False
    dense[50:55] = pruned[50:55] = False
    label = np.arange(N) % 3
    answers = np.where(pruned, label, label + 1)
    answers[50:55] = 9
    slices = {"early": np.arange(N) < 50, "few": np.arange(N) >= 290, "none": np.zeros(N, bool)}
    return make_table(dense, **slices), make_table(pruned, prediction=answers, **slices)


def test_counts_are_those_of_the_table(pair):
    comparison = compare(*pair)
    overall, flips = comparison.overall, comparison.flips
    assert (overall.n, overall.dense, overall.pruned) == (N, 285 / N, 255 / N)
    assert overall.change == pytest.approx(-30 / N)
    assert (flips.n, flips.lost, flips.gained, flips.prediction_changed) == (N, 40, 10, 55)
    assert flips.p_value == mcnemar_exact(40, 10)
    assert flips.test == "exact McNemar"
    assert comparison.binary


def test_every_class_and_slice_is_the_comparison_of_its_rows(pair):
    dense, pruned = pair
    comparison = compare(dense, pruned)
    names = ["class:0", "class:1", "class:2", "slice:early", "slice:few"]
    assert [part.name for part in comparison.slices] == names
    assert comparison.empty_slices == ("slice:none",)
    for part in comparison.slices:
        kind, _, name = part.name.partition(":")
        rows = dense["label"] == int(name) if kind == "class" else dense[part.name]
        alone = compare(dense[rows], pruned[rows]).overall
        assert part.kind == kind
        for field in ("n", "dense", "pruned", "change", "lost", "gained", "too_few", "interval"):
            assert getattr(part, field) == getattr(alone, field)
        assert part.low == pytest.approx(alone.low, abs=0.03)
        assert part.low <= part.change <= part.high


def test_small_slices_are_marked_and_wide_not_hidden(pair):
    comparison = compare(*pair)
    few = next(part for part in comparison.slices if part.name == "slice:few")
    assert few.too_few
    assert few.n == 10
    assert few.change == 0
    assert few.low < -0.2
    assert "1 of them have fewer than 30 examples" in comparison.note
    assert "Without any example: slice:none" in comparison.note


def test_the_worst_slice_says_how_many_were_looked_at(pair):
    comparison = compare(*pair)
    assert comparison.worst == "slice:early"
    assert comparison.slices_looked_at == 5
    assert "slice:early is the worst of 5 slices looked at" in comparison.note
    assert "about 0.3 miss" in comparison.note


def test_without_labels_predictions_and_slices_there_is_only_the_whole(pair):
    bare = [table[["example_id", "correct"]] for table in pair]
    comparison = compare(*bare)
    assert comparison.slices == ()
    assert comparison.worst is None
    assert comparison.flips.prediction_changed is None
    assert comparison.note == "No classes or slices were looked at."


def test_a_model_compared_with_itself_changed_nothing_but_is_not_certain(pair):
    dense, _ = pair
    comparison = compare(dense, dense)
    overall = comparison.overall
    assert (overall.change, overall.lost, overall.gained, comparison.flips.p_value) == (0, 0, 0, 1)
    assert overall.low == pytest.approx(-overall.high)
    assert overall.low < 0


def test_swapping_the_models_mirrors_the_comparison(pair):
    forth, back = compare(*pair).overall, compare(*reversed(pair)).overall
    assert back.change == -forth.change
    assert (back.lost, back.gained) == (forth.gained, forth.lost)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.005)


def test_a_metric_that_is_not_binary_uses_its_own_scale(pair):
    rng = np.random.default_rng(0)
    quality = 50 + rng.normal(size=N)
    change = rng.normal(-0.5, 1, size=N)
    dense = pair[0].assign(bleu=quality)
    pruned = pair[1].assign(bleu=quality + change)
    comparison = compare(dense, pruned, metric="bleu")
    error = change.std(ddof=1) / np.sqrt(N)
    assert not comparison.binary
    assert comparison.flips.test == "exact sign test"
    assert comparison.flips.lost == np.count_nonzero(change < 0)
    assert comparison.overall.low == pytest.approx(change.mean() - 1.96 * error, abs=0.1 * error)
    assert comparison.overall.high == pytest.approx(change.mean() + 1.96 * error, abs=0.1 * error)


def test_adding_a_slice_moves_no_other_interval(pair):
    fewer = compare(*(table.drop(columns="slice:early") for table in pair))
    more = {part.name: part for part in compare(*pair).slices}
    assert all(part == more[part.name] for part in fewer.slices)


def test_same_seed_same_comparison(pair):
    noise = np.random.default_rng(0).normal(size=(2, N))
    tables = [table.assign(score=values) for table, values in zip(pair, noise, strict=True)]
    first, again, other = (compare(*tables, metric="score", seed=seed).overall for seed in (3, 3, 4))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_the_tables_are_left_as_found(pair):
    before = [table.copy() for table in pair]
    compare(*pair)
    assert all(table.equals(copy) for table, copy in zip(pair, before, strict=True))


def test_a_comparison_survives_json(pair):
    comparison = compare(*pair)
    text = json.dumps(asdict(comparison), allow_nan=False)
    assert Comparison.from_dict(json.loads(text)) == comparison


@pytest.mark.parametrize("damage", [{"slices": None}, {"surprise": 1}, {"overall": {"name": "overall"}}])
def test_a_damaged_comparison_is_a_storage_error(pair, damage):
    data = {**asdict(compare(*pair)), **damage}
    with pytest.raises(StorageError, match="damaged or of another version"):
        Comparison.from_dict(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"resamples": 10}, "at least 100"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(pair, settings, message):
    with pytest.raises(UsageError, match=message):
        compare(*pair, **settings)


def test_tables_of_other_examples_are_refused(pair):
    dense, pruned = pair
    with pytest.raises(WorkloadError, match="Row 0"):
        compare(dense, pruned.iloc[::-1])
