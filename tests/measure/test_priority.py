"""Scheduling is put back, whatever happens; the oracle is a stand-in for the system's calls."""

from __future__ import annotations

import os

import pytest

from prunekit.measure import priority
from prunekit.measure.priority import real_time


class Scheduler:
    """The calls of ``os`` about scheduling, that remember what was set."""

    def __init__(self, *, allowed: bool = True) -> None:
        self.state = (os.SCHED_OTHER, 0)
        self.allowed = allowed
        self.seen: list[tuple[int, int]] = []

    def get(self, _: int) -> int:
        return self.state[0]

    def get_param(self, _: int) -> os.sched_param:
        return os.sched_param(self.state[1])

    def set(self, _: int, policy: int, param: os.sched_param) -> None:
        if not self.allowed:
            raise PermissionError("not permitted")
        self.state = (policy, param.sched_priority)
        self.seen.append(self.state)


@pytest.fixture
def put(monkeypatch):
    def install(scheduler: Scheduler) -> Scheduler:
        monkeypatch.setattr(priority.os, "sched_getscheduler", scheduler.get)
        monkeypatch.setattr(priority.os, "sched_getparam", scheduler.get_param)
        monkeypatch.setattr(priority.os, "sched_setscheduler", scheduler.set)
        return scheduler

    return install


def test_state_is_put_back(put):
    scheduler = put(Scheduler())
    before = scheduler.state
    with real_time() as holds:
        assert holds
        assert scheduler.state == (os.SCHED_FIFO, priority.LOWEST)
    assert scheduler.state == before


def test_state_is_put_back_after_an_error(put):
    scheduler = put(Scheduler())
    before = scheduler.state
    with pytest.raises(ZeroDivisionError), real_time():
        raise ZeroDivisionError
    assert scheduler.seen == [(os.SCHED_FIFO, priority.LOWEST), before]


def test_another_policy_is_put_back_as_it_was(put):
    scheduler = put(Scheduler())
    scheduler.state = (os.SCHED_RR, 7)
    with real_time():
        pass
    assert scheduler.state == (os.SCHED_RR, 7)


@pytest.mark.parametrize(("wanted", "allowed"), [(False, True), (True, False), (False, False)])
def test_nothing_changes_where_it_is_not_wanted_or_not_allowed(put, wanted, allowed):
    scheduler = put(Scheduler(allowed=allowed))
    before = scheduler.state
    with real_time(wanted) as holds:
        assert not holds
        assert scheduler.state == before
    assert scheduler.seen == []


def test_systems_without_the_calls_go_on(monkeypatch):
    monkeypatch.delattr(priority.os, "sched_getscheduler")
    with real_time() as holds:
        assert not holds


def test_an_error_inside_is_not_taken_for_a_refusal(put):
    put(Scheduler())
    with pytest.raises(OSError, match="disk"), real_time():
        raise OSError("disk full")
