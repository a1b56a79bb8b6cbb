import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PlanError
from prunekit.plan import Goal, PruningPlan, allocate
from prunekit.types import Cost


def make(keep, sizes, *, before=100, after=50):
    return PruningPlan(
        keep=keep,
        sizes=sizes,
        fingerprint="f",
        criterion="l2",
        goal=Goal("sparsity", remove=0.5),
        scope="uniform",
        before=Cost(before, 10 * before, 4 * before),
        after=Cost(after, 10 * after, 4 * after),
    )


PLAN = make({"a": (0, 2, 3), "b": (1,)}, {"a": 6, "b": 2, "c": 4})


def test_masks_removed_and_widths_agree():
    masks = PLAN.keep_mask()
    assert masks["a"].tolist() == [True, False, True, True, False, False]
    assert masks["b"].tolist() == [False, True]
    assert "c" not in masks
    assert PLAN.removed("a") == (1, 4, 5)
    assert PLAN.removed("c") == ()
    assert PLAN.widths == {"a": (6, 3), "b": (2, 1), "c": (4, 4)}
    with pytest.raises(PlanError, match="no group 'z'"):
        PLAN.removed("z")


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.scope = "global"
    with pytest.raises(TypeError, match="immutable"):
        PLAN.keep["a"] = (1,)
    with pytest.raises(TypeError, match="immutable"):
        PLAN.sizes.update(a=1)
    kept = {"a": (0,)}
    plan = make(kept, {"a": 2})
    kept["a"] = (1,)
    assert plan.keep["a"] == (0,)


def test_a_plan_is_a_value():
    same = make({"b": [1], "a": [0, 2, 3]}, {"c": 4, "b": 2, "a": 6})
    assert same == PLAN
    assert hash(same) == hash(PLAN)
    assert same.digest == PLAN.digest
    assert copy.deepcopy(PLAN) == PLAN
    assert copy.copy(PLAN) == PLAN
    assert json.loads(json.dumps(dataclasses.asdict(PLAN)))["keep"] == {"a": [0, 2, 3], "b": [1]}
    assert make({"a": (0, 2, 4), "b": (1,)}, {"a": 6, "b": 2, "c": 4}).digest != PLAN.digest


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "json": lambda plan: PruningPlan.from_json(plan.to_json()),
    "replace": dataclasses.replace,
    **{
        f"pickle {protocol}": lambda plan, protocol=protocol: pickle.loads(pickle.dumps(plan, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("way", list(COPIES))
def test_a_plan_survives_every_way_of_copying_it(way):
    for plan in (PLAN, make({}, {}), PLAN.then(make({"a": (0,)}, {"a": 3}, before=50))):
        digest = plan.digest  # a digest that is known already goes along
        again = COPIES[way](plan)
        assert again == plan
        assert hash(again) == hash(plan)
        assert again.digest == digest
        assert again.to_json() == plan.to_json()
        with pytest.raises(TypeError, match="immutable"):
            again.keep["a"] = (1,)


@pytest.mark.parametrize(
    ("keep", "sizes"),
    [
        ({"a": (0, 1)}, {}),
        ({"a": (0, 1, 2)}, {"a": 3}),
        ({"a": (1, 0)}, {"a": 3}),
        ({"a": (0, 0)}, {"a": 3}),
        ({"a": (-1, 0)}, {"a": 3}),
        ({"a": (0, 3)}, {"a": 3}),
        ({}, {"a": 0}),
    ],
)
def test_values_that_contradict_each_other_are_refused(keep, sizes):
    with pytest.raises(PlanError, match="'a'"):
        make(keep, sizes)


def damaged():
    content = json.loads(PLAN.to_json())
    yield "", "not JSON"
    yield PLAN.to_json()[:-20], "not JSON"
    yield "[" * 100_000, "not JSON"
    yield "[]", "Its schema is None"
    yield json.dumps({**content, "schema": "prunekit.plan/2"}), "expected 'prunekit.plan/1'"
    yield json.dumps({k: v for k, v in content.items() if k != "keep"}), r"lacks the fields \['keep'\]"
    yield json.dumps({**content, "extra": 1}), r"unknown fields \['extra'\]"
    yield json.dumps({**content, "keep": []}), "keep is list"
    yield json.dumps({**content, "keep": {"a": [0, 2.0, 3]}}), "unit id is float"
    yield json.dumps({**content, "keep": {"a": [0, True, 3]}}), "unit id is bool"
    yield json.dumps({**content, "keep": {"a": [0, 10**30]}}), "wrong value"
    yield json.dumps({**content, "keep": {"a": [0, 9]}}), "It keeps 2 of 6"
    yield json.dumps({**content, "sizes": {"a": "6", "b": 2, "c": 4}}), "is str"
    yield json.dumps({**content, "goal": {"kind": "sparsity", "remove": 2}}), "wrong value"
    yield json.dumps({**content, "goal": {"kind": "sparsity", "remove": 0.5, "speed": 1}}), "wrong value"
    yield json.dumps({**content, "after": {"params": 1}}), "wrong value"
    yield json.dumps({**content, "scope": "local"}), "The scope is 'local'"
    yield json.dumps({**content, "keep": {"a": [0, 2, 4], "b": [1]}}), "Its digest is"
    yield json.dumps({**content, "digest": None}), "digest is NoneType"


@pytest.mark.parametrize(("text", "message"), list(damaged()))
def test_damaged_json_is_refused(text, message):
    with pytest.raises(PlanError, match=f"(?i){message}"):
        PruningPlan.from_json(text)


@given(data=st.data())
def test_composition_is_that_of_taking_rows(data):
    """Oracle: NumPy indexing, which also makes it associative."""
    size = data.draw(st.integers(4, 30))

    def subset(n):
        return sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1)))

    first = subset(size)
    second = subset(len(first)) if len(first) > 1 else None
    plans = [make({"a": first}, {"a": size}, before=100, after=50)]
    expected = np.arange(size)[first]
    if second:
        plans.append(make({"a": second}, {"a": len(first)}, before=50, after=40))
        expected = expected[second]
    plans.append(make({"b": (0,)}, {"a": len(expected), "b": 3}, before=plans[-1].after.params, after=5))
    left = plans[0]
    for plan in plans[1:]:
        left = left.then(plan)
    right = plans[-1]
    for plan in plans[-2::-1]:
        right = plan.then(right)
    assert left == right
    assert left.keep == {"a": tuple(expected.tolist()), "b": (0,)}
    assert (left.before.params, left.after.params) == (100, 5)


def test_composition_with_blocks_counts_in_original_units(perceptron):
    """Oracle: weights named by their original unit, pruned twice."""
    groups = perceptron(8, [24], 4, blocks=[4])
    scores = groups.scores(0)
    first = allocate(groups, scores, Goal("sparsity", remove=0.5))
    original = np.arange(24)[first.keep_mask()["layer0.weight:0"]]
    smaller = perceptron(8, [12], 4, blocks=[4])
    second = allocate(
        smaller, {"layer0.weight:0": scores["layer0.weight:0"][original]}, Goal("sparsity", remove=0.4)
    )
    original = original[second.keep_mask()["layer0.weight:0"]]
    both = first.then(second)
    assert both.keep["layer0.weight:0"] == tuple(original.tolist())
    assert (both.keep_mask()["layer0.weight:0"].reshape(4, 6).sum(axis=1) == 2).all()
    assert both.fingerprint == first.fingerprint
    assert (both.before, both.after) == (first.before, second.after)
    # the best of the best are the best of all
    assert both.keep == allocate(groups, scores, Goal("sparsity", remove=0.7)).keep


def test_plans_of_different_models_do_not_compose():
    with pytest.raises(PlanError, match=r"'a': The later plan was made on 6 units.*the 3 units"):
        PLAN.then(make({"a": (0,)}, {"a": 6}, before=50))
    with pytest.raises(PlanError, match="a model of 49 parameters"):
        PLAN.then(make({"a": (0,)}, {"a": 3}, before=49))
