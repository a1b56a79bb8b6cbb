"""Times of operations survive their file, only what is missing is measured, and damage is refused."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.targeting.conftest import PlantedRig, Runner, operation_ms

from prunekit.errors import MeasurementError, StorageError
from prunekit.measure.operation import NOTHING, PACE, Operation, frame_of
from prunekit.targeting.operator_times import NET, OperatorTimes, load_operator_times

pytestmark = pytest.mark.usefixtures("planted")


def linear(outputs: int) -> Operation:
    return Operation("linear", ((4, 8), (outputs, 8), (outputs,)), (4, outputs))


def convolution(outputs: int) -> Operation:
    settings = (("stride", (1, 2)), ("padding", (1, 0)), ("dilation", (1, 1)), ("groups", 1))
    return Operation("convolution", ((1, 3, 8, 8), (outputs, 3, 3, 3)), (1, outputs, 8, 3), settings)


LINEARS = [linear(outputs) for outputs in (16, 12, 8, 4)]
CONVOLUTIONS = [convolution(outputs) for outputs in (8, 6, 2)]


@pytest.fixture
def rig() -> PlantedRig:
    return PlantedRig((torch.zeros(2, 3),))


def test_times_are_those_of_the_operations(rig):
    times = OperatorTimes("here")
    times.measure(rig, [LINEARS, CONVOLUTIONS])
    for one in (*LINEARS, *CONVOLUTIONS):
        assert times.ms[one] == pytest.approx(operation_ms(one))
        assert times.net_ms(one) == pytest.approx(operation_ms(one) - operation_ms(frame_of(one)))
    assert times.missing([*LINEARS, NOTHING]) == []


def test_only_what_is_missing_is_measured(rig):
    times = OperatorTimes("here")
    times.measure(rig, [LINEARS[:2]])
    rig.opened.clear()
    times.measure(rig, [LINEARS[:2]])
    assert rig.opened == []
    times.measure(rig, [LINEARS])
    assert rig.opened == [PACE, *LINEARS[2:]]


def test_operations_of_several_classes_are_measured_once(rig):
    times = OperatorTimes("here")
    steps = []
    times.measure(rig, [LINEARS, LINEARS[::-1], CONVOLUTIONS], progress=lambda *step: steps.append(step))
    frames = {frame_of(one) for one in (*LINEARS, *CONVOLUTIONS)}
    assert set(times.ms) == {PACE, *LINEARS, *CONVOLUTIONS, *frames}
    done, total = zip(*steps, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1] == len(times.ms) - 1


def test_many_operations_are_timed_a_few_at_once(rig):
    many = [linear(outputs) for outputs in range(1, 40)]
    times = OperatorTimes("here")
    times.measure(rig, [many])
    for one in many:
        assert times.ms[one] == pytest.approx(operation_ms(one))


def test_times_of_a_slow_day_are_as_those_before(rig):
    """A machine at half the speed: the pace that is kept is that of the first day."""
    times = OperatorTimes("here")
    times.measure(rig, [LINEARS])
    rig.open_operation = lambda operation: Runner(2 * operation_ms(operation))
    times.measure(rig, [CONVOLUTIONS])
    for one in (*LINEARS, *CONVOLUTIONS, PACE):
        assert times.ms[one] == pytest.approx(operation_ms(one))


def test_a_frame_never_takes_everything():
    times = OperatorTimes("here", ms={LINEARS[0]: 1.0, NOTHING: 5.0})
    assert times.net_ms(LINEARS[0]) == NET


def test_times_survive_their_file(rig, tmp_path):
    path = tmp_path / "tables" / "here.json"
    times = load_operator_times("here", path)
    assert times.ms == {}
    times.measure(rig, [LINEARS, CONVOLUTIONS])
    again = load_operator_times("here", path)
    assert again.ms == times.ms
    assert again.missing([*LINEARS, *CONVOLUTIONS]) == []
    rig.opened.clear()
    again.measure(rig, [LINEARS, CONVOLUTIONS])
    assert rig.opened == []


def test_two_that_began_with_nothing_keep_what_both_measured(rig, tmp_path):
    path = tmp_path / "here.json"
    first, second = (load_operator_times("here", path) for _ in range(2))
    first.measure(rig, [LINEARS])
    second.measure(rig, [CONVOLUTIONS])
    kept = load_operator_times("here", path).ms
    assert kept == first.ms | second.ms
    assert {*LINEARS, *CONVOLUTIONS} <= kept.keys()


def test_a_time_that_was_kept_stays_and_is_taken_over(tmp_path):
    path = tmp_path / "here.json"
    early = OperatorTimes("here", path, {LINEARS[0]: 1.0})
    late = OperatorTimes("here", path, {LINEARS[0]: 2.0, LINEARS[1]: 3.0})
    early.save()
    late.save()
    assert late.ms == load_operator_times("here", path).ms == {LINEARS[0]: 1.0, LINEARS[1]: 3.0}
    early.save()
    assert early.ms == late.ms


COUNT = 40
"""Times that each process keeps, one by one."""


def write_one_by_one(path: Path, first: int, together: Barrier) -> None:
    times = OperatorTimes("here", path)
    together.wait(60)
    for outputs in range(first, first + COUNT):
        times.ms[linear(outputs)] = float(outputs)
        times.save()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """They are forked, because nothing of what they inherit besides files is at work in them."""
    path, context = tmp_path / "here.json", multiprocessing.get_context("fork")
    together = context.Barrier(2)
    writers = [
        context.Process(target=write_one_by_one, args=(path, first, together)) for first in (1, 1 + COUNT)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    kept = load_operator_times("here", path).ms
    assert sorted(kept.values()) == [float(outputs) for outputs in range(1, 1 + 2 * COUNT)]


@pytest.mark.parametrize("place", ["a file", "below a file", "nowhere to write"])
def test_a_folder_that_takes_nothing_is_found_before_anything_is_timed(rig, tmp_path, place):
    (tmp_path / "file").write_text("")
    folder = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "tables",
        "nowhere to write": Path("/proc/tables"),
    }[place]
    times = OperatorTimes("here", folder / "here.json")
    with pytest.raises(StorageError, match="Times of operations cannot be kept there") as error:
        times.measure(rig, [LINEARS])
    assert error.value.where == str(folder)
    assert rig.opened == []
    assert times.ms == {}


def test_a_folder_is_only_written_to_where_something_is_missing(rig, tmp_path):
    path = tmp_path / "here.json"
    load_operator_times("here", path).measure(rig, [LINEARS])
    again = load_operator_times("here", path)
    again.path = tmp_path / "here.json" / "below a file" / "here.json"
    rig.opened.clear()
    again.measure(rig, [LINEARS])
    assert rig.opened == []


def test_without_a_file_nothing_is_kept(rig, tmp_path):
    times = load_operator_times("here", None)
    times.measure(rig, [LINEARS])
    times.save()
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "no JSON": lambda text: text[: len(text) // 2],
    "another schema": lambda text: text.replace("operator_times/", "other/"),
    "another target": lambda text: text.replace('"here"', '"there"'),
    "no times": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "times"}),
    "a list": lambda _: "[]",
    "no number": lambda text: text.replace(json.loads(text)["times"][0][0], "x").replace(
        "[[4, 8]", '[["a", 8]'
    ),
    "a row too short": lambda text: json.dumps({**json.loads(text), "times": [[1, 2]]}),
    "binary": lambda _: "\x00\xff",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(rig, tmp_path, damage):
    path = tmp_path / "here.json"
    load_operator_times("here", path).measure(rig, [LINEARS])
    path.write_text(DAMAGE[damage](path.read_text()), encoding="latin-1")
    with pytest.raises(MeasurementError, match="Remove the file") as error:
        load_operator_times("here", path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.0, np.inf])
def test_times_that_are_no_times_are_refused(tmp_path, value):
    path = tmp_path / "here.json"
    OperatorTimes("here", path, {LINEARS[0]: value}).save()
    with pytest.raises(MeasurementError, match="Remove the file"):
        load_operator_times("here", path)
