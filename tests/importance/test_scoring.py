import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance import CRITERIA, NORMALIZATIONS, Statistics, check_fit, collect, score
from prunekit.types import Granularity, Group, Slice


def rows_by_hand(model):
    """The parameters of each channel of the model in conftest, slice by slice, in NumPy float64."""

    def array(tensor):
        return tensor.detach().double().numpy()

    return [
        array(model.conv.weight).reshape(4, -1),
        array(model.conv.bias)[:, None],
        array(model.bn.weight)[:, None],
        array(model.bn.bias)[:, None],
        array(model.head.weight).reshape(3, 4, 9).transpose(1, 0, 2).reshape(4, 27),
    ]


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
@pytest.mark.parametrize("normalization", ["mean", "max", "l2", "none"])
def test_magnitude_of_all_parameter_slices_and_no_buffer(
    model, group, criterion, order, reduction, normalization
):
    """Oracle: NumPy norms of the rows written down by hand; running_mean and running_var have no part."""
    norms = np.stack([np.linalg.norm(rows, ord=order, axis=1) for rows in rows_by_hand(model)])
    expected = getattr(norms, reduction)(axis=0)
    divisors = {"mean": expected.mean(), "max": expected.max(), "l2": np.linalg.norm(expected), "none": 1.0}
    expected = expected / divisors[normalization]
    found = score(model, [group], criterion, reduction=reduction, normalization=normalization)
    assert found["conv.weight:0"].dtype == np.float32
    np.testing.assert_allclose(found["conv.weight:0"], expected, rtol=1e-6)


def test_roles_choose_the_slices(model, group):
    conv, *_, head = rows_by_hand(model)
    for roles, expected in [
        (["producer"], np.linalg.norm(conv, axis=1)),
        ("producer", np.linalg.norm(conv, axis=1)),
        (["consumer"], np.linalg.norm(head, axis=1)),
        (["consumer", "producer"], np.linalg.norm(conv, axis=1) + np.linalg.norm(head, axis=1)),
    ]:
        found = score(model, [group], "l2", roles=roles, reduction="sum", normalization="none")
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_a_slice_without_a_unit_does_not_count_for_it():
    """Units 0 and 1 lie in both tensors, unit 2 in one: its mean is over one slice."""
    model = nn.ParameterDict({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([5.0, 0.0])})
    slices = (Slice("a", 0, np.arange(3), "producer"), Slice("b", 0, np.arange(2), "producer"))
    group = Group("a:0", Granularity.NEURON, 3, 1, slices)
    found = score(model, [group], "l1", normalization="none")
    assert found["a:0"].tolist() == [3.0, 1.0, 3.0]
    assert score(model, [group], "l1", normalization="none", reduction="sum")["a:0"].tolist() == [6, 2, 3]


def test_integer_parameters_are_skipped(group):
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([[1.0], [2.0]]))
    model.codes = nn.Parameter(torch.tensor([100, 1]), requires_grad=False)
    whole = np.arange(2)
    slices = (Slice("codes", 0, whole, "producer"), Slice("weight", 0, whole, "producer"))
    two = Group("weight:0", Granularity.NEURON, 2, 1, slices)
    assert score(model, [two], "l1", normalization="none")["weight:0"].tolist() == [1.0, 2.0]
    only_codes = dataclasses.replace(two, slices=slices[:1])
    with pytest.raises(SelectionError, match="No float parameter of the group"):
        score(model, [only_codes], "l1")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_weights_are_summed_in_float64(dtype):
    """Oracle: a thousand weights of 8 have the norm 8 * sqrt(1000), squares of which overflow float16."""
    model = nn.ParameterDict({"w": torch.full((2, 1000), 8.0, dtype=dtype)})
    group = Group("w:0", Granularity.NEURON, 2, 1, (Slice("w", 0, np.arange(2), "producer"),))
    found = score(model, [group], "l2", normalization="none")["w:0"]
    np.testing.assert_allclose(found, [8 * np.sqrt(1000)] * 2, rtol=1e-6)


def test_a_group_of_zeros_stays_zero():
    model = nn.ParameterDict({"w": torch.zeros(3, 2)})
    group = Group("w:0", Granularity.NEURON, 3, 1, (Slice("w", 0, np.arange(3), "producer"),))
    for normalization in NORMALIZATIONS:
        assert score(model, [group], "l2", normalization=normalization)["w:0"].tolist() == [0, 0, 0]


def test_random_depends_on_seed_and_name_only(model, group):
    other = dataclasses.replace(group, name="other")
    first = score(model, [group, other], "random", seed=3)
    again = score(model, [other, group], "random", seed=3)
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["other"] != first[group.name]).any()
    assert (score(model, [group], "random", seed=4)[group.name] != first[group.name]).any()
    assert score(model, [group], "random", normalization="none")[group.name].max() < 1


def test_taylor_reads_the_statistics(model, group, batches, loss):
    stats = collect(model, batches, groups=[group], needs=CRITERIA["taylor"].needs, loss=loss)
    raw = stats.values["first_order"][group.name]
    for reduction in ("sum", "mean", "max"):
        found = score(model, [group], "taylor", stats=stats, reduction=reduction, normalization="none")
        np.testing.assert_allclose(found[group.name], raw, rtol=1e-6)


def test_taylor_without_its_statistics_says_what_to_call(model, group, batches, loss):
    with pytest.raises(CalibrationError, match=r"Call collect\(model, calibration"):
        score(model, [group], "taylor")
    stats = collect(
        model, batches, groups=[group], needs={"first_order"}, loss=loss, roles=["producer", "consumer"]
    )
    with pytest.raises(CalibrationError, match="gathered over the roles"):
        score(model, [group], "taylor", stats=stats)
    damaged = Statistics({"first_order": {group.name: np.zeros(3)}}, stats.roles, 1, 0.0)
    with pytest.raises(ShapeError, match="statistic 'first_order'"):
        score(model, [group], "taylor", stats=damaged, roles=stats.roles)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "l3"}, "There is no criterion 'l3'.*'taylor'"),
        ({"reduction": "median"}, "There is no reduction 'median'"),
        ({"normalization": "softmax"}, "There is no normalization 'softmax'"),
        ({"roles": []}, r"The roles are \[\]"),
        ({"roles": ["producer", "bias"]}, "one or more of"),
        ({"seed": -1}, "The seed is -1"),
    ],
)
def test_wrong_names_are_explained(model, group, arguments, message):
    with pytest.raises(SelectionError, match=message):
        score(model, [group], **arguments)


def test_weights_that_cannot_be_scored_are_named(model, group):
    with torch.no_grad():
        model.bn.weight[1] = float("nan")
    with pytest.raises(CalibrationError, match=r"bn\.weight: The parameter holds NaN"):
        score(model, [group], "l2")
    with pytest.raises(CalibrationError, match=r"conv\.weight: .*meta device"):
        score(type(model)().to("meta"), [group], "l2")
    assert np.isfinite(score(type(model)().to("meta"), [group], "random")[group.name]).all()


def test_groups_of_another_model_are_refused(model, group):
    with pytest.raises(ShapeError, match="has none of the tensors"):
        score(nn.Linear(2, 2), [group], "l2")
    other = nn.Module()
    other.conv = nn.Conv2d(2, 5, 3)
    with pytest.raises(ShapeError, match=r"conv\.weight: The tensor has the shape \(5, 2, 3, 3\)"):
        score(other, [group], "l2")


def test_gaussian_ranks_by_standard_deviations_from_the_mean():
    """Oracle: the standardised scores of two groups, ranked together in NumPy."""
    draw = np.random.default_rng(0)
    values = {"a": draw.gamma(2, size=20), "b": 100 + 30 * draw.random(12)}
    model = nn.ParameterDict({name: torch.from_numpy(v[:, None].copy()) for name, v in values.items()})
    groups = [
        Group(f"{n}:0", Granularity.NEURON, len(v), 1, (Slice(n, 0, np.arange(len(v)), "producer"),))
        for n, v in values.items()
    ]
    found = score(model, groups, "l1", normalization="gaussian")
    standardised = np.concatenate([(v - v.mean()) / v.std() for v in values.values()])
    together = np.concatenate([found["a:0"], found["b:0"]])
    assert np.argsort(together).tolist() == np.argsort(standardised).tolist()
    np.testing.assert_allclose(together, np.log(1 + np.exp(standardised)), rtol=1e-6)


def test_bn_scale_is_the_magnitude_of_the_norms_scale(model, group):
    with torch.no_grad():
        model.bn.weight[1] *= -1
    found = score(model, [group], "bn_scale", normalization="none")[group.name]
    np.testing.assert_allclose(found, np.abs(model.bn.weight.detach().numpy()), rtol=1e-6)
    roles = score(model, [group], "bn_scale", normalization="none", roles=["producer"])[group.name]
    assert (roles == found).all()


def test_groups_that_a_criterion_says_nothing_about_are_named_or_fall_back(model, group):
    bare = dataclasses.replace(group, name="bare", slices=group.slices[:2])
    for refuse in (check_fit, score):
        with pytest.raises(
            SelectionError, match=r"'bn_scale' says nothing about the groups 'bare': no batch norm"
        ):
            refuse(model, [group, bare], "bn_scale")
        with pytest.raises(SelectionError, match="fallback='l2'"):
            refuse(model, [bare], "bn_scale", fallback="bn_scale")
        with pytest.raises(SelectionError, match="There is no criterion 'l3'"):
            refuse(model, [group], "bn_scale", fallback="l3")
    found = score(model, [group, bare], "bn_scale", fallback="l1")
    assert (found["bare"] == score(model, [bare], "l1")["bare"]).all()
    assert (found[group.name] == score(model, [group], "bn_scale")[group.name]).all()


@pytest.mark.parametrize("criterion", ["fpgm", "lamp", "movement", "bn_scale"])
@pytest.mark.parametrize("granularity", [Granularity.LAYER, Granularity.BRANCH])
def test_what_compares_units_inside_a_tensor_says_nothing_about_layers(model, group, criterion, granularity):
    layers = dataclasses.replace(group, granularity=granularity)
    with pytest.raises(SelectionError, match="no two of which share a tensor"):
        score(model, [layers], criterion)


def test_an_error_names_some_of_many_groups(model, group):
    many = [dataclasses.replace(group, name=f"g{n}", slices=group.slices[:1]) for n in range(9)]
    with pytest.raises(SelectionError, match="'g4' and 4 more"):
        score(model, many, "reap")
