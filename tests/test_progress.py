"""How a run tells how far it is."""

import re
from io import StringIO

from rich.console import Console

from prunekit.progress import Bars, Lines, in_words


def test_bars_on_a_terminal():
    screen = StringIO()
    with Bars(Console(file=screen, force_terminal=True, width=100, color_system=None)) as bars:
        bars.kept("baseline")
        bars.begins("cycle-01/score", "it has not run yet")
        bars.progress("cycle-01/score", 1, 2)
        bars.ends("cycle-01/score", 0.25)
        bars.begins("cycle-01/plan", "changed: recipe.goal")
        bars.ends("cycle-01/plan", 75.0)
        bars.removed("cycle-02/score")
    lines = [
        " ".join(line.split()) for line in re.sub(r"\x1b\[[0-9;?]*\w", "", screen.getvalue()).splitlines()
    ]
    for line in (
        "kept baseline",
        "done cycle-01/score 0.2 s",
        "again cycle-01/plan changed: recipe.goal",
        "done cycle-01/plan 1 min 15 s",
        "gone cycle-02/score no longer part of the run",
    ):
        assert line in lines


def test_lines_for_a_log(capsys):
    lines = Lines()
    lines.kept("baseline")
    lines.begins("cycle-01/score", "it has not run yet")
    lines.progress("cycle-01/score", 1, 2)
    lines.ends("cycle-01/score", 0.25)
    lines.begins("cycle-01/plan", "changed: recipe.goal")
    lines.ends("cycle-01/plan", 75.0)
    lines.removed("cycle-02/score")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "baseline: done before",
        "cycle-01/score: begins",
        "cycle-01/score: done in 0.2 s",
        "cycle-01/plan: begins again; changed: recipe.goal",
        "cycle-01/plan: done in 1 min 15 s",
        "cycle-02/score: removed; it is no longer part of the run",
    ]


def test_seconds_in_words():
    assert [in_words(value) for value in (0.04, 59.94, 60, 3671)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "61 min 11 s",
    ]
