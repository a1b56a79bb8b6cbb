"""Times that an earlier cycle left are taken over on their own target only, and replace nothing."""

import json

import pytest

from prunekit.targeting.operator_times import OperatorTimes, load_operator_times
from prunekit.workflow.reaching import take_over


@pytest.fixture
def earlier(tmp_path):
    path = tmp_path / "earlier.json"
    OperatorTimes("here", path).save()
    return path


def test_times_of_the_same_target_are_taken_over(earlier, tmp_path):
    table = tmp_path / "tables" / "here.json"
    take_over(earlier, table, "here")
    assert table.read_bytes() == earlier.read_bytes()


def test_times_of_another_machine_are_left_so_that_measuring_goes_on(earlier, tmp_path):
    table = tmp_path / "tables" / "there.json"
    take_over(earlier, table, "there")
    assert not table.exists()
    assert load_operator_times("there", table).ms == {}


def test_what_was_measured_since_stays(earlier, tmp_path):
    table = tmp_path / "here.json"
    table.write_text(json.dumps("newer"))
    take_over(earlier, table, "here")
    assert json.loads(table.read_text()) == "newer"
