"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from prunekit.measure.rounds import time_rounds
from prunekit.targeting.operator_times import OperatorTimes

# Examples may take as long as they take: the machine is shared, and no test is about time.
settings.register_profile("prunekit", deadline=None)
settings.load_profile("prunekit")


@pytest.fixture(scope="session", autouse=True)
def few_rounds() -> Iterator[None]:
    """Operations are timed in three rounds: no test asks how long they take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OperatorTimes.measure.__kwdefaults__, "rounds", 3)
        patch.setitem(time_rounds.__kwdefaults__, "most", 3)
        yield
