"""Which positions count, and how examples are taken apart and put together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.recover.distilling import bert, llama, words
from torch import nn

from prunekit.errors import ShapeError
from prunekit.recover.distillation.positions import Positions, is_causal, labelled, positions_of
from prunekit.recover.distillation.rows import fingerprints, join_rows, split_rows
from prunekit.workload import Batch

MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])


def of_two_parts():
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(is_encoder_decoder=True)
    model.can_generate = lambda: True
    return model


def test_the_masks_of_a_model_of_two_parts():
    batch = Batch(args=(), kwargs={"attention_mask": MASK, "decoder_attention_mask": MASK[:, :2]})
    found = positions_of(batch, of_two_parts(), None)
    assert found.tokens is None
    assert torch.equal(found.outputs, MASK[:, :2].bool())
    found = positions_of(batch, nn.Linear(1, 1), None)
    assert torch.equal(found.tokens, MASK.bool())
    assert found.outputs is found.tokens


def test_who_shifts_its_labels():
    assert [is_causal(each) for each in (llama(), bert(), nn.Linear(1, 1), of_two_parts())] == [
        True,
        False,
        False,
        False,
    ]


LABELS = torch.tensor([[-100, 4, -100], [1, -100, 2]])


@pytest.mark.parametrize(
    ("causal", "expected"),
    [(False, [[0, 1, 0], [1, 0, 1]]), (True, [[1, 0, 0], [0, 1, 0]])],
)
def test_labels_of_positions(causal, expected):
    logits = torch.zeros(2, 3, 5)
    found = labelled(logits, Batch(args=(), target=LABELS), causal=causal, ignore_index=-100, class_dim=-1)
    assert torch.equal(found, torch.tensor(expected).bool())


@pytest.mark.parametrize(
    "target",
    [None, torch.tensor([1, -100]), torch.zeros(2, 4).long(), LABELS.float(), ["a", "b"]],
    ids=["none", "of examples", "of another shape", "numbers", "texts"],
)
def test_labels_that_say_nothing_about_positions(target):
    for logits in (torch.zeros(2, 3, 5), torch.zeros(2, 5)):
        batch = Batch(args=(), target=target)
        assert labelled(logits, batch, causal=False, ignore_index=-100, class_dim=-1) is None


def test_labels_of_images_of_classes():
    target = torch.tensor([[[0, 255], [1, 1]]])
    batch = Batch(args=(), target=target)
    found = labelled(torch.zeros(1, 5, 2, 2), batch, causal=False, ignore_index=255, class_dim=1)
    assert torch.equal(found, target != 255)


VALUES = {
    "logits": torch.randn(2, 3, 5),
    "hidden/words": torch.randn(2, 3, 5),
    "hidden/pooled": torch.randn(2, 5),
    "hidden/maps": torch.randn(2, 5, 3, 3),
    "attention/heads": torch.randn(2, 4, 3, 3),
}


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("masked", [False, True])
def test_examples_are_put_together_as_they_were(key, masked):
    """The oracle is the value itself with zeros where there is padding."""
    value = VALUES[key]
    mask = MASK.bool() if masked else None
    positions = Positions(mask, mask)
    expected = value
    if masked and value.ndim == 3:
        expected = value * MASK[..., None]
    if masked and key.startswith("attention"):
        expected = value * (MASK[:, None, :, None] * MASK[:, None, None, :])
    rows = split_rows(key, value, positions)
    assert torch.equal(join_rows(key, rows, positions), expected)
    assert (rows[0].numel() < value[0].numel()) == (masked and not torch.equal(expected, value))


def test_examples_of_other_lengths_are_refused():
    rows = [torch.zeros(2, 5), torch.zeros(3, 5)]
    mask = MASK.bool()
    with pytest.raises(ShapeError, match="one size, as no mask says"):
        join_rows("logits", rows, Positions(None, None))
    with pytest.raises(ShapeError, match="3 positions, as in the mask"):
        join_rows("logits", rows[:1] * 2, Positions(mask[1:].expand(2, 3), mask[1:].expand(2, 3)))


def test_fingerprints_are_those_of_inputs_without_padding():
    batch = words(((1, 3), (2, 5)), width=6)
    model = nn.Linear(1, 1)

    def of(each):
        return fingerprints(each, positions_of(each, model, None), len(each))

    same = (
        words(((1, 3), (2, 5)), width=9),
        words(((1, 3), (2, 5)), width=7, left=True),
        words(((1, 3), (2, 5)), width=6, labels=torch.zeros(2, 6)),
    )
    assert all(of(each) == of(batch) for each in same)
    assert of(words(((2, 5), (1, 3)), width=6)) == of(batch)[::-1]
    assert of(words(((1, 4), (2, 5)), width=6))[0] != of(batch)[0]
    flipped = torch.arange(6.0).reshape(1, 2, 3)
    pair = [Batch(args=(each,), ids=("a",)) for each in (flipped, flipped.flip(2))]
    assert of(pair[0]) != of(pair[1])
