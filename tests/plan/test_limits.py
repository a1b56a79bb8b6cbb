"""Limits for all groups and for those that a pattern names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import GoalError, SelectionError
from prunekit.plan import Goal, Limits, allocate
from prunekit.plan.limits import limits_by_group

HALF = Goal("sparsity", remove=0.5)


def widths(plan):
    return [after for _, after in plan.widths.values()]


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("plain", [{"min_units": 5}, {"round_to": 4}, {"max_sparsity": 0.5}, {}])
def test_limits_as_one_value_are_the_limits_given_one_by_one(perceptron, scope, plain):
    groups = perceptron(8, [32, 16], 4)
    goal = Goal("macs", remove=0.3, tolerance=0.2)
    plans = [
        allocate(groups, groups.scores(), goal, scope=scope, **limits)
        for limits in (plain, {"limits": Limits(**plain)}, {"per_group": {"*": Limits(**plain)}})
    ]
    assert plans[0] == plans[1] == plans[2]
    assert widths(plans[0]) != [32, 16]


PER_GROUP = [
    ({"layer0.*": Limits(min_units=40)}, [40, 32, 32]),
    ({"layer0.*": Limits(max_sparsity=0.25)}, [48, 32, 32]),
    ({"layer0.*": Limits(max_sparsity=0.0)}, [64, 32, 32]),
    ({"layer[01].*": Limits(round_to=24)}, [24, 24, 32]),
    ({"*": Limits(min_units=40), "layer2*": Limits(min_units=1)}, [40, 40, 32]),
    ({"layer2*": Limits(min_units=1), "*": Limits(min_units=40)}, [40, 40, 40]),
    ({"*": Limits(min_units=40), "layer1*": Limits(round_to=16)}, [40, 48, 40]),
]


@pytest.mark.parametrize(("per_group", "expected"), PER_GROUP)
def test_a_group_keeps_what_its_own_limits_ask(perceptron, per_group, expected):
    """Oracle: by hand; half of 64 is 32, the nearest multiple of 24 is 24, the least multiple of 16 is 48."""
    groups = perceptron(8, [64, 64, 64], 4)
    assert widths(allocate(groups, groups.scores(), HALF, per_group=per_group)) == expected


def test_a_groups_own_limit_comes_before_that_of_all_in_either_direction(perceptron):
    groups = perceptron(8, [64, 64], 4)
    plan = allocate(
        groups,
        groups.scores(),
        HALF,
        limits=Limits(min_units=48, round_to=8),
        per_group={"layer1*": Limits(min_units=4)},
    )
    assert widths(plan) == [48, 32]
    groups = perceptron(8, [64, 64], 4)
    scores = groups.scores()
    scores["layer0.weight:0"][:] = 0
    goal = Goal("sparsity", remove=0.49, tolerance=0.01)
    plan = allocate(groups, scores, goal, scope="global", per_group={"layer0*": Limits(max_sparsity=1)})
    assert widths(plan)[0] == 1  # 0.9 for all groups would leave 7


LIMITS = st.builds(
    Limits,
    min_units=st.none() | st.integers(1, 16),
    max_sparsity=st.none() | st.floats(0, 1),
    round_to=st.none() | st.integers(1, 9),
)


@given(
    general=LIMITS,
    first=LIMITS,
    second=LIMITS,
    kind=st.sampled_from(["sparsity", "macs"]),
    scope=st.sampled_from(["uniform", "global"]),
    percent=st.integers(1, 60),
)
def test_every_plan_holds_the_limits_of_every_group(perceptron, general, first, second, kind, scope, percent):
    """Law: a group is whole, or keeps what the last pattern that says something about it allows."""
    groups = perceptron(8, [48, 32, 16], 4, blocks=[1, 4, 1])
    own = {"layer[12]*": first, "layer2*": second}
    goal = Goal(kind, remove=percent / 100, tolerance=0.2)
    try:
        plan = allocate(groups, groups.scores(), goal, scope=scope, limits=general, per_group=own)
    except GoalError:
        return
    for index, (size, kept) in enumerate(plan.widths.values()):
        layers = [[general], [first, general], [second, first, general]][index]

        def last(name, default, layers=layers):
            return next((getattr(one, name) for one in layers if getattr(one, name) is not None), default)

        largest = last("max_sparsity", 1.0 if scope == "uniform" else 0.9)
        holds = kept >= last("min_units", 1) and kept % last("round_to", 1) == 0
        assert kept == size or (holds and size - kept <= size * largest + 1e-6)


@pytest.mark.parametrize(
    ("per_group", "message"),
    [
        ({"layer9*": Limits(min_units=2)}, r"'layer9\*' matches no prunable group"),
        ({"layer1*": Limits(min_units=9)}, "'layer1.weight:0' is to keep at least 9 units and has 8"),
        ({"*": Limits(min_units=65)}, "'layer0.weight:0' is to keep at least 65 units and has 64"),
        ({"layer1*": 8}, "It holds 'layer1[*]': 8"),
        ({1: Limits()}, "It holds 1: Limits"),
        (3, "It is 3"),
    ],
)
def test_wrong_limits_of_groups_are_refused(perceptron, per_group, message):
    groups = perceptron(8, [64, 8], 4)
    with pytest.raises(SelectionError, match=f"per_group.*: .*{message}") as caught:
        allocate(groups, groups.scores(), HALF, per_group=per_group)
    assert caught.value.expected


def test_a_minimum_for_all_keeps_narrower_groups_whole(perceptron):
    groups = perceptron(8, [64, 8], 4)
    assert widths(allocate(groups, groups.scores(), HALF, min_units=9)) == [32, 8]


@pytest.mark.parametrize(
    "arguments", [{"limits": Limits(), "round_to": 2}, {"limits": 3}, {"limits": {"round_to": 2}}]
)
def test_limits_in_two_places_or_of_another_kind_are_refused(perceptron, arguments):
    groups = perceptron(8, [64, 8], 4)
    with pytest.raises(SelectionError, match="limits: The limits are given as limits"):
        allocate(groups, groups.scores(), HALF, **arguments)


def test_what_a_group_cannot_lose_is_said_with_its_own_limits(perceptron):
    groups = perceptron(8, [64, 8], 4)
    with pytest.raises(GoalError, match=r"'layer0.weight:0' keeps 60 of 64: min_units=60; 'layer1"):
        allocate(
            groups, groups.scores(), Goal("macs", remove=0.9), per_group={"layer0*": Limits(min_units=60)}
        )


def test_without_patterns_all_groups_have_the_same_limits(perceptron):
    groups = perceptron(8, [64, 8], 4).groups
    assert limits_by_group(groups, Limits(round_to=3), {}) == (Limits(round_to=3),) * 2
