"""Names and addresses are stated by hand."""

from __future__ import annotations

import torch
from torch import nn

from prunekit.deploy import inputs as deployed
from prunekit.deploy import output_tensors


def test_inputs_are_named_after_the_parameters_of_forward(nested, nested_inputs):
    args, kwargs = nested_inputs(3)
    assert deployed.input_names(nested, (args, kwargs)) == ["x", "pair_a", "pair_b_0", "bias", "mask"]
    found = deployed.input_tensors((args, kwargs))
    assert list(found) == ["[0][0]", "[0][1]['a']", "[0][1]['b'][0]", "[1]['bias']", "[1]['mask']"]
    assert found["[0][1]['b'][0]"] is args[1]["b"][0]
    assert set(deployed.input_tensors((args, dict(reversed(kwargs.items()))))) == set(found)


def test_starred_inputs_are_numbered():
    class Starred(nn.Module):
        def forward(self, first, *rest):
            return first

    tensors = (torch.zeros(1),) * 3
    assert deployed.input_names(Starred(), (tensors, {})) == ["first", "rest_0", "rest_1"]


def test_outputs_are_named_after_what_holds_them(nested, nested_inputs):
    args, kwargs = nested_inputs(3)
    outputs = nested(*args, **kwargs)
    found = output_tensors(outputs)
    assert list(found) == ["logits", "extra_sum", "extra_same_0", "extra_same_1"]
    assert found["extra_sum"] is outputs.extra["sum"]
    one, two = torch.zeros(1), torch.ones(1)
    assert output_tensors(one) == {"output": one}
    assert output_tensors((one, None, [two], 5)) == {"output_0": one, "output_2_0": two}
    assert list(output_tensors({"a_b": one, "a": {"b": two}})) == ["a_b", "a_b_1"]
    assert output_tensors("nothing") == {}


def test_batches_change_size_and_nothing_else_does(nested_inputs):
    args, kwargs = nested_inputs(3)
    kwargs["table"] = torch.zeros(7, 4)
    assert deployed.batch_size((args, kwargs)) == 3
    one_args, one_kwargs = deployed.one_example((args, kwargs))
    assert torch.equal(one_args[1]["b"][0], args[1]["b"][0][:1])
    assert one_kwargs["table"] is kwargs["table"]
    assert one_kwargs["scale"] == 2.0
    twice = deployed.doubled((args, kwargs))
    assert torch.equal(twice[0][0], torch.cat([args[0], args[0]]))
    assert deployed.batch_size(((torch.tensor(1.0), 3), {})) is None
