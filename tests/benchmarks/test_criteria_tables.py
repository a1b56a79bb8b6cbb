"""The table of criteria says who wins by a stated rule: better than both baselines in every seed."""

import pytest
from benchmarks.criteria.study import BASELINES, Contest, Study
from benchmarks.criteria.tables import beats, spread, table

HIGHER = [
    ({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}, True),
    ({0: 2.0, 1: 3.0}, {0: 1.0, 1: 3.0}, False),  # a tie in one seed
    ({0: 2.0, 1: 1.0}, {0: 1.0, 1: 2.0}, False),  # better in the mean of no seed
    ({0: 2.0, 1: 1.0}, {0: 1.9, 1: 0.9}, True),  # each seed with its own, though the ranges overlap
    ({None: 2.0}, {0: 1.0, 1: 1.5}, True),  # one figure for every seed
    ({None: 2.0}, {0: 1.0, 1: 2.5}, False),
    ({0: 2.0, 1: 3.0}, {None: 1.0}, True),
    ({0: 2.0, 1: 0.5}, {None: 1.0}, False),
    ({None: 2.0}, {None: 1.0}, True),
    ({None: 1.0}, {None: 1.0}, False),
]


@pytest.mark.parametrize(("found", "line", "wins"), HIGHER)
def test_every_seed_is_compared_with_its_own(found, line, wins):
    assert beats(found, line, lower=False) is wins
    turned = [{seed: -value for seed, value in side.items()} for side in (found, line)]
    assert beats(*turned, lower=True) is wins


def test_a_cell_is_the_middle_with_the_range():
    assert spread([3.0, 1.0, 2.5], "{:.1f}") == "2.5 (1.0 to 3.0)"
    assert spread([3.0], "{:.1f}") == "3.0"


def test_only_what_beats_both_baselines_is_bold():
    contest = Contest("channels", ("channel",), (*BASELINES, "good", "half"))
    study = Study(
        "a model", "", lambda seed: None, (contest,), (0.5,), {"loss": "{:.0f}"}, lower_is_better=True
    )
    losses = {"random": {0: 5, 1: 6}, "l1": {None: 4}, "good": {0: 2, 1: 3}, "half": {0: 2, 1: 5}}
    rows = [
        {"contest": "channels", "criterion": name, "sparsity": 0.5, "seed": seed, "loss": loss}
        for name, by_seed in losses.items()
        for seed, loss in by_seed.items()
    ]
    lines = table(study, contest, "loss", rows).splitlines()
    assert [line for line in lines if "**" in line] == ["| `good` | **2 (2 to 3)** |"]
    assert lines[0] == "| criterion | 50% of the units |"
    assert len(lines) == 2 + len(losses)
