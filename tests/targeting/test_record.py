"""What is written down of attempts are the figures that the goals ask about."""

from __future__ import annotations

import pytest

from prunekit.plan import Goal
from prunekit.workflow.attempts import record_of


@pytest.mark.usefixtures("planted")
def test_macs_are_those_of_one_example_whatever_the_batch(measured):
    """Oracle: the exact count of the plan; the target has a batch of 4."""
    goals = [Goal("macs", remove=0.4, tolerance=0.03), Goal("speedup", reach=1.1, tolerance=0.03)]
    reached = measured.reach(goals)
    last = record_of(measured, goals, reached)["attempts"][-1]
    assert measured.rig.target.batch == 4
    for figures in (last["predicted"], last["measured"]):
        assert figures[0] == pytest.approx(reached.plan.after.macs)
    assert last["measured"][1] == last["speedup"]["median"]
