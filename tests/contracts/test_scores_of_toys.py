"""Every criterion over every toy net: scores follow the units, wherever the engine says that these lie.

The toys hold what users write: fused projections, bare parameters, shuffled channels, recurrent layers,
experts. A unit that is observed or gathered at a wrong index keeps the score of another one.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.zoo import oracles
from tests.zoo.toys import CASES, groups_of
from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.errors import CalibrationError
from prunekit.importance import CALIBRATED, NEEDS, collect, score

pytestmark = pytest.mark.filterwarnings("ignore:dropout2d")

WITHOUT_A_READ = {
    "bilinear": "a bilinear form is one operator",
    "lstm": "a recurrent layer is one operator",
    "gru with a state handed over": "a recurrent layer is one operator",
    "rnn, last state": "a recurrent layer is one operator",
}
"""Toys with weights that read a unit inside an operator, where nothing is observed."""

CONSTANT = {
    "batch of one": "one example does not vary",
    "tokens of an image": "a token that no image reaches is all that is read",
}
"""Toys whose output is the same for all examples."""


def loss(outputs, batch):
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return sum(leaf.square().mean() for leaf in leaves if leaf.is_floating_point())


def statistics(case, model):
    args, kwargs = case.inputs()
    groups = groups_of(case.name)
    batch = SimpleNamespace(args=args, kwargs=kwargs)
    return collect(model, [batch], groups=groups, needs=needs_of(case), loss=loss)


def needs_of(case):
    """Everything, where the output varies."""
    return NEEDS - {"output_variance"} if case.name in CONSTANT else NEEDS


@pytest.fixture(params=[case for case in CASES if len(groups_of(case.name))], ids=lambda case: case.name)
def case(request):
    return request.param


def moved(group, seed):
    """``[units]`` the unit whose tensors each unit has after ``oracles.permuted(model, [group], seed)``."""
    draw = np.random.default_rng(seed)
    size = group.units_per_block
    return np.concatenate([block * size + oracles._derangement(size, draw) for block in range(group.blocks)])


def test_scores_follow_the_units(case):
    model, groups = case.model().eval(), groups_of(case.name)
    before = statistics(case, model)
    for group in groups:
        twin = oracles.permuted(model, [group], 7)
        after = statistics(case, twin)
        order = moved(group, 7)
        only = [group]
        fitting = {name for name, row in CALIBRATED.items() if row.needs <= needs_of(case)}
        for criterion in fitting - {"random"}:
            arguments = {"criterion": criterion, "fallback": "l2", "normalization": "none"}
            first = score(model, only, stats=before, **arguments)[group.name]
            second = score(twin, only, stats=after, **arguments)[group.name]
            assert np.isfinite(first).all()
            limit = 1e-3 * max(first.max(), 1e-6)
            np.testing.assert_allclose(second, first[order], atol=limit, err_msg=f"{group.name} {criterion}")


def test_every_weight_that_reads_a_unit_is_observed(case):
    """Oracle: the consumer slices, which the operator rules state by themselves."""
    groups = groups_of(case.name)
    parameters = dict(case.model().named_parameters(remove_duplicate=False))
    found = statistics(case, case.model()).readings
    missing = {
        part.tensor
        for group in groups
        for part in group.slices
        if part.role == "consumer" and part.tensor in parameters
        if part.tensor not in {reading.where for reading in found[group.name]}
    }
    assert bool(missing) == (case.name in WITHOUT_A_READ), missing
    assert all(found[group.name] for group in groups)


def test_routed_experts_have_an_output(case):
    groups = [group.name for group in groups_of(case.name) if group.granularity == "expert"]
    values = statistics(case, case.model()).values["expert_output"]
    assert set(groups) == set(values)
    assert all(torch.from_numpy(found).isfinite().all() for found in values.values())


def test_outputs_that_do_not_vary_are_refused(case):
    args, kwargs = case.inputs()
    batch = SimpleNamespace(args=args, kwargs=kwargs)
    groups = groups_of(case.name)
    if case.name in CONSTANT:
        with pytest.raises(CalibrationError, match=r"nothing varies|the same for all examples"):
            collect(case.model(), [batch], groups=groups, needs={"output_variance"})
    else:
        values = collect(case.model(), [batch], groups=groups, needs={"output_variance"}).values
        assert set(values["output_variance"]) == {group.name for group in groups}
