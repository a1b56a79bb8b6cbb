"""Which parameters are found, by which names, and what is refused."""

import pytest
import torch
from torch import nn

from prunekit.errors import SelectionError
from prunekit.importance import find_weights


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_matrices_are_found_once_and_embeddings_are_not():
    weights = find_weights(Tied())
    assert [weight.places for weight in weights] == [("first.weight", "second.weight")]
    assert weights.count == 16


def test_patterns_choose_by_any_of_the_names_or_the_module_around():
    model = Tied()
    chosen = find_weights(model, only=("second", "head.*", "norm.bias", "token"))
    assert {weight.name for weight in chosen} == {
        "token",
        "embed.weight",
        "first.weight",
        "second.bias",
        "norm.bias",
    }
    assert [weight.name for weight in find_weights(model, only="first", ignore="*.bias")] == ["first.weight"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"only": "nothing.*"},
        {"ignore": "nothing"},
        {"input_dims": {"nothing": 0}},
        {"input_dims": {"first.weight": 2}},
        {"only": [1]},
    ],
)
def test_what_matches_nothing_is_refused(arguments):
    with pytest.raises(SelectionError):
        find_weights(Tied(), **arguments)


def test_integer_parameters_are_left_and_refused_by_name():
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    assert [weight.name for weight in find_weights(model)] == ["weight"]
    with pytest.raises(SelectionError, match="float"):
        find_weights(model, only="codes")


def test_a_parameter_without_a_shape_is_named():
    with pytest.raises(SelectionError, match=r"0\.(bias|weight)'.*no shape yet"):
        find_weights(nn.Sequential(nn.LazyLinear(4)))


def test_the_fingerprint_is_of_names_ties_and_shapes():
    model, other = Tied(), Tied()
    assert find_weights(model).fingerprint == find_weights(other.half(), ignore="head").fingerprint
    other.second.weight = nn.Parameter(torch.zeros(4, 4))
    assert find_weights(model).fingerprint != find_weights(other).fingerprint
