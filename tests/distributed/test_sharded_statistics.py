"""What calibration gathers from a model in parts, against the whole model in one process."""

from __future__ import annotations

import pytest
import torch
from tests.distributed.gathering import SHARES, all_statistics, net
from tests.distributed.launching import launch, launched_once
from tests.distributed.sharding import held, statistics

from prunekit.ranks import ALONE

ROUNDING = 2e-6
"""Relative, of gradients and activations in float32: their sums may be taken in another order."""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    gathering = "tests.distributed.gathering:sharded_of"
    return launched_once({2: f"{gathering}_two", 3: f"{gathering}_three"}, tmp_path_factory)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (len(share) > 2)) for name, share in SHARES.items()]
)
def share(request):
    return request.param


@pytest.fixture
def found(launched, share):
    """What each process found."""
    return [each[share] for each in launched(len(SHARES[share]))]


def test_every_process_has_what_one_has_with_the_whole_model(found, share):
    """With as many batches each, with more on some, and with none on one."""
    expected = all_statistics(net(), [n for part in SHARES[share] for n in part])
    for mine in found:
        agree(mine, expected)


def test_all_processes_have_the_same_bits(found):
    first, *others = found
    for other in others:
        assert [k for k, v in first.items() if isinstance(v, str) and v != other[k]] == []
        figures = {k: v for k, v in first.items() if isinstance(v, torch.Tensor)}
        assert [k for k, v in figures.items() if not same_bits(v, other[k])] == []


def test_groups_may_be_found_without_values(tmp_path):
    """Tied and frozen parameters, batch norm, unequal shards, whole tensors that a forward pass left."""
    expected = statistics(ALONE)
    assert not expected.pop("parted")
    for mine in launch("tests.distributed.sharding:statistics", 2, tmp_path):
        assert mine.pop("parted")
        agree(mine, expected)


def test_one_whole_weight_at_a_time_is_held(tmp_path):
    """Of eight: readings take one, gradients one, the weight they belong to and the one being used."""
    assert held(ALONE)["readings"] < 1
    for mine in launch("tests.distributed.sharding:held", 2, tmp_path):
        assert mine["readings"] < 2
        assert mine["sensitivity"] < 4


def agree(mine, expected) -> None:
    assert mine.keys() == expected.keys()
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert mine[key] == pytest.approx(value, rel=ROUNDING) if isinstance(value, float) else value
            continue
        scale = float(value.nan_to_num().abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(mine[key], value, rtol=ROUNDING, atol=ROUNDING * scale, equal_nan=True)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30))
