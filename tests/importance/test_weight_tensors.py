"""Which parameters are found, by which names, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

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


def test_patterns_narrow_by_any_of_the_names_or_the_module_around_and_full_names_take_what_they_name():
    model = Tied()
    chosen = find_weights(model, only=("second", "head.weight", "norm.bias", "token"))
    assert {weight.name for weight in chosen} == {"token", "embed.weight", "first.weight", "norm.bias"}
    everything = find_weights(model, only="*")
    assert [weight.name for weight in everything] == [weight.name for weight in find_weights(model)]
    both = find_weights(model, only=("first", "first.bias"), ignore="*.weight")
    assert [weight.name for weight in both] == ["first.bias"]


def by_hook(norm):
    """A linear layer whose weight is computed before each call, in a model with a plain one."""
    return nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 4))


COMPUTED = {
    "parametrized weight norm": (parametrizations.weight_norm, "0.weight", "_WeightNorm"),
    "parametrized spectral norm": (parametrizations.spectral_norm, "0.weight", "_SpectralNorm"),
    "weight norm": (nn.utils.weight_norm, "0.weight_v", "weight_norm"),
    "spectral norm": (nn.utils.spectral_norm, "0.weight_orig", "spectral_norm"),
    "pruned by torch": (lambda layer: l1_unstructured(layer, "weight", 0.5), "0.weight_orig", "L1Unstruct"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_is_computed_before_each_call_is_left_out_with_the_reason(kind):
    norm, name, what = COMPUTED[kind]
    weights = find_weights(by_hook(norm))
    assert [weight.name for weight in weights] == ["1.weight"]
    assert what in weights.left_out[name]
    assert not find_weights(by_hook(norm), ignore="0").left_out
    for only in ("0", "0.*", name):
        with pytest.raises(SelectionError, match=rf"can be masked: 0\..*{what}"):
            find_weights(by_hook(norm), only=only)


@pytest.mark.parametrize(
    "arguments",
    [
        {"only": "nothing.*"},
        {"only": "norm"},
        {"only": ("first", "embed")},
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


def test_weights_of_eight_bits_are_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(torch.zeros(2, 2).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(SelectionError, match=r"float8_e4m3fn.*\n?.*'1\.weight'|'1\.weight'.*float8_e4m3fn"):
        find_weights(model)
    assert [weight.name for weight in find_weights(model, ignore="1")] == ["0.weight"]


def test_a_parameter_without_a_shape_is_named():
    with pytest.raises(SelectionError, match=r"0\.(bias|weight)'.*no shape yet"):
        find_weights(nn.Sequential(nn.LazyLinear(4)))


def test_the_fingerprint_is_of_names_ties_and_shapes():
    model, other = Tied(), Tied()
    assert find_weights(model).fingerprint == find_weights(other.half(), ignore="head").fingerprint
    other.second.weight = nn.Parameter(torch.zeros(4, 4))
    assert find_weights(model).fingerprint != find_weights(other).fingerprint
