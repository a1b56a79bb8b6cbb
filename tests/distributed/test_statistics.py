"""Statistics, scores and plans over several processes, against one process that is given all batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.distributed.gathering import SHARES, batch, everything, groups, loss, net
from tests.distributed.launching import launch

import prunekit as pk

ROUNDING = 1e-12
"""Relative: what the order of sums in float64 may change."""

ROUNDING_OF_FLOAT32 = 2e-6
"""Of buffers and gradients, which are float32."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the name of the share, what each process found."""
    runs = [
        launch(f"tests.distributed.gathering:{name}", size, tmp_path_factory.mktemp(name))
        for name, size in (("of_two", 2), ("of_three", 3))
    ]
    return {name: [each[name] for each in run] for run in runs for name in run[0]}


@pytest.fixture(scope="module")
def expected():
    return {name: everything([n for part in share for n in part]) for name, share in SHARES.items()}


@pytest.mark.parametrize("share", SHARES)
def test_all_processes_have_the_same_bits(found, share):
    first, *others = found[share]
    for other in others:
        assert other.keys() == first.keys()
        assert [key for key in first if not same_bits(first[key], other[key])] == []


@pytest.mark.parametrize("share", SHARES)
def test_they_have_what_one_process_has_that_sees_all_batches(found, expected, share):
    compared = 0
    for key, value in expected[share].items():
        mine = found[share][0][key]
        if isinstance(value, torch.Tensor) and not key.startswith("movement"):
            single = value.dtype == torch.float32
            scale = float(value.nan_to_num().abs().max())
            rtol = ROUNDING_OF_FLOAT32 if single else ROUNDING
            torch.testing.assert_close(mine, value, rtol=rtol, atol=rtol * scale, equal_nan=True)
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("share", SHARES)
def test_counts_the_mean_loss_and_plans_are_exactly_the_same(found, expected, share):
    exact = ("batches", "loss", "norms", "norm batches")
    keys = [k for k in expected[share] if k in exact or k.startswith(("plan", "count", "zeros", "weights"))]
    assert len(keys) > 20
    assert [key for key in keys if not same_bits(found[share][0][key], expected[share][key])] == []


@pytest.mark.parametrize("share", ["one each of two", "one each of three"])
def test_with_one_batch_each_every_bit_of_sums_in_float64_is_the_same(found, expected, share):
    keys = [key for key in expected[share] if not key.startswith(("movement", "gradient "))]
    assert [key for key in keys if not same_bits(found[share][0][key], expected[share][key])] == []


def test_movement_is_the_mean_over_the_processes(found):
    model = net()
    total: dict[str, np.ndarray] = {}
    for number in (0, 1, 10, 11):
        movement = pk.Movement(model, groups().select())
        model.zero_grad()
        loss(model(*batch(number).args), batch(number)).backward()
        movement.update()
        for name, values in movement.statistics().values["movement"].items():
            total[name] = total.get(name, 0) + values / 2
    for name, values in total.items():
        mine = found["three and two"][0][f"movement {name}"].numpy()
        np.testing.assert_allclose(mine, values, rtol=1e-12, atol=1e-15)


def same_bits(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30))
    return one == other
