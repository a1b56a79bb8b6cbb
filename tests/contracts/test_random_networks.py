"""The laws of removal over random networks; the oracles are those of ``tests.zoo.oracles``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.zoo import oracles
from tests.zoo.random_networks import IMAGE_PROGRAMS, SEQUENCE_PROGRAMS, image_network, sequence_network
from torch import Tensor, nn

from prunekit.graph import Groups, find_groups, trace
from prunekit.plan import Goal, allocate
from prunekit.surgery import remove, sound, verify
from prunekit.types import DEPTH, Granularity

TOLERANCE = 1e-6

deterministic = settings(
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
pytestmark = pytest.mark.filterwarnings("error")


def drawn(few: int, many: int) -> pytest.MarkDecorator:
    """How many networks are drawn: few, and with ``--slow`` many."""
    return pytest.mark.parametrize("networks", [few, pytest.param(many, marks=pytest.mark.slow)])


@drawn(15, 60)
def test_laws_hold_for_random_image_networks(networks):
    @settings(deterministic, max_examples=networks)
    @given(steps=IMAGE_PROGRAMS, flatten=st.booleans(), seed=st.integers(0, 99))
    def law(steps, flatten, seed):
        cuts = {"narrow", "split", "chunk"} & {step.kind for step in steps}
        assert_laws(*image_network(steps, flatten=flatten), seed, may_freeze=bool(cuts))

    law()


@drawn(8, 40)
def test_laws_hold_for_random_sequence_networks(networks):
    @settings(deterministic, max_examples=networks)
    @given(steps=SEQUENCE_PROGRAMS, seed=st.integers(0, 99))
    def law(steps, seed):
        assert_laws(*sequence_network(steps), seed, may_freeze=False)

    law()


def assert_laws(model: nn.Module, x: Tensor, seed: int, *, may_freeze: bool) -> None:
    """Permuted, masked and cut-out tensors agree with the dense model and with what removal gives.

    Only where a network cuts through the blocks of an axis may the permutation law find one that the labels
    took for exchangeable.
    """
    model, x = away_from_the_start(model).double(), x.double()
    everything = find_groups(trace(model, x))
    assert_whole(model, everything, seed)
    found = everything.select(granularity=set(Granularity) - DEPTH)
    groups = sound(model, found)
    assert len(groups) == len(found) or may_freeze
    if not len(groups):
        assert groups.frozen
        return
    batches = [oracles.in_double(batch) for batch in (((x,), {}), oracles.more(((x,), {})))]
    dense = [oracles.run(model, batch) for batch in batches]
    assert_permutations(model, groups, batches, dense, seed)

    draw = np.random.default_rng(seed)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    plan = allocate(groups, scores, Goal("sparsity", remove=(0.25, 0.5, 0.75)[seed % 3]))
    removal = remove(model, plan, groups)
    after = oracles.tensors_of(removal.model)
    for name, tensor in oracles.tensors_of(model).items():
        if name in after:
            assert torch.equal(after[name], oracles.cut_out(groups, plan.keep_mask(), name, tensor)), name
    proof = verify(model, removal.model, plan, groups, seed=seed)
    assert proof.passed, str(proof)

    keep = {name: mask for name, mask in plan.keep_mask().items() if groups[name].mask_equivalent}
    equivalent = groups.select(only=sorted(keep)) if keep else None
    if equivalent is not None:
        plan = allocate(equivalent, scores, Goal("sparsity", remove=0.5))
        small = remove(model, plan, equivalent).model
        masked = oracles.zeroed(model, equivalent, plan.keep_mask())
        for batch in batches:
            assert oracles.error(oracles.run(masked, batch), oracles.run(small, batch)) < TOLERANCE


def assert_whole(model: nn.Module, groups: Groups, seed: int) -> None:
    """Layers and branches can be left out: all laws hold, and the cost is the one that was said."""
    groups = groups.select(granularity=DEPTH)
    if not len(groups):
        return
    draw = np.random.default_rng(seed)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    plan = allocate(groups, scores, Goal("sparsity", remove=0.75))
    removal = remove(model, plan, groups)
    assert verify(model, removal.model, plan, groups, seed=seed).passed
    assert plan.after.params == sum(tensor.numel() for tensor in removal.model.parameters())


def assert_permutations(model: nn.Module, groups: Groups, batches: list, dense: list, seed: int) -> None:
    for chosen in (*([group] for group in groups), groups):
        twin = oracles.permuted(model, chosen, seed)
        for batch, expected in zip(batches, dense, strict=True):
            assert oracles.error(expected, oracles.run(twin, batch)) < TOLERANCE, [g.name for g in chosen]


def away_from_the_start(model: nn.Module) -> nn.Module:
    """Norms with scales, shifts and statistics of their own."""
    with torch.no_grad():
        for module in model.modules():
            if "Norm" in type(module).__name__:
                for name, tensor in oracles.tensors_of(module).items():
                    if tensor.is_floating_point():
                        tensor.uniform_(0.5, 1.5) if "bias" not in name else tensor.uniform_(-0.5, 0.5)
    return model
