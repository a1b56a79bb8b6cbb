"""Each distance is its closed form, in NumPy and float64, and its gradient is the numerical one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunekit.recover.distillation.distances import attention_distance, hidden_distance, logit_divergence


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def rows_of(tensor, counted):
    values = tensor.double().numpy()
    return values.reshape(-1, values.shape[-1]) if counted is None else values[counted.numpy()]


def divergence(student, teacher, temperature, counted):
    p, q = (softmax(rows_of(each, counted) / temperature) for each in (teacher, student))
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()


def cosine(student, teacher, counted):
    s, t = rows_of(student, counted), rows_of(teacher, counted)
    return (1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)).mean()


COUNTED = {
    "all": ((5, 7), None),
    "tokens": ((3, 4, 7), None),
    "some tokens": ((3, 4, 7), drawn(3, 4, seed=9) > 0),
}


@pytest.mark.parametrize("shape", COUNTED)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_is_the_closed_form(shape, temperature):
    size, counted = COUNTED[shape]
    student, teacher = 3 * drawn(*size), 3 * drawn(*size, seed=1)
    found = logit_divergence(student, teacher, temperature=temperature, counted=counted)
    assert float(found) == pytest.approx(divergence(student, teacher, temperature, counted), rel=1e-12)


@pytest.mark.parametrize("shape", COUNTED)
def test_distances_of_hidden_states_are_the_closed_forms(shape):
    size, counted = COUNTED[shape]
    student, teacher = drawn(*size), drawn(*size, seed=1)
    squares = (rows_of(student, counted) - rows_of(teacher, counted)) ** 2
    for distance, expected in (("mse", squares.mean()), ("cosine", cosine(student, teacher, counted))):
        found = hidden_distance(student, teacher, distance=distance, counted=counted)
        assert float(found) == pytest.approx(expected, rel=1e-12), distance


def test_distances_of_attention_maps_are_the_closed_forms():
    """Query by query in Python; keys of padding hold nothing, as after a mask."""
    has = torch.tensor([[True, True, True], [True, True, False]])
    hidden = torch.where(has, 0.0, -torch.inf)[:, None, None]
    student, teacher = ((drawn(2, 4, 3, 3, seed=seed) + hidden).softmax(-1) for seed in (0, 1))
    divergences, squares = [], []
    for example in range(2):
        length = int(has[example].sum())
        for head in range(4):
            p, q = (each[example, head, :length, :length].numpy() for each in (teacher, student))
            divergences += (p * np.log(p / q)).sum(-1).tolist()
            squares += ((p - q) ** 2).ravel().tolist()
    for distance, expected in (("kl", np.mean(divergences)), ("mse", np.mean(squares))):
        found = attention_distance(student, teacher, distance=distance, counted=has)
        assert float(found) == pytest.approx(expected, rel=1e-12), distance
        whole = attention_distance(student[:1], teacher[:1], distance=distance)
        assert float(whole) == pytest.approx(
            float(attention_distance(student[:1], teacher[:1], distance=distance, counted=has[:1])), rel=1e-12
        )


TERMS = {
    "divergence": lambda s, t, c: logit_divergence(s, t, temperature=3.0, counted=c),
    "mse": lambda s, t, c: hidden_distance(s, t, distance="mse", counted=c),
    "cosine": lambda s, t, c: hidden_distance(s, t, distance="cosine", counted=c),
    "attention kl": lambda s, t, c: attention_distance(maps(s), maps(t), distance="kl", counted=c),
    "attention mse": lambda s, t, c: attention_distance(maps(s), maps(t), distance="mse", counted=c),
}


def maps(scores):
    """``[examples, 1, positions, positions]`` of ``[examples, positions, positions]``."""
    return scores.softmax(-1)[:, None]


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_numerical(name):
    counted = torch.tensor([[True, True, True, False], [True, False, True, True]])
    student, teacher = drawn(2, 4, 4).requires_grad_(), drawn(2, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: TERMS[name](each, teacher, counted), student)
    TERMS[name](student, teacher, counted).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_are_at_distance_zero_and_others_are_not(name, dtype):
    values, others = drawn(2, 4, 4, dtype=dtype), drawn(2, 4, 4, seed=1, dtype=dtype)
    values[0, 0] = 0
    assert float(TERMS[name](values, values.clone(), None)) == 0
    found = TERMS[name](values, others, None)
    assert float(found) > 1e-3
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(TERMS[name](values.double(), others.double(), None)), rel=0.02)


@pytest.mark.parametrize("name", TERMS)
def test_where_nothing_counts_there_is_no_loss_and_no_gradient(name):
    student = drawn(2, 4, 4).requires_grad_()
    loss = TERMS[name](student, drawn(2, 4, 4, seed=1), torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(student.grad.abs().sum()) == 0


def test_a_class_that_the_teacher_excludes_adds_nothing():
    """The oracle is the same without the class, where the student excludes it too."""
    student, teacher = drawn(5, 7), drawn(5, 7, seed=1)
    expected = logit_divergence(student[:, 1:], teacher[:, 1:], temperature=2.0)
    student[:, 0] = teacher[:, 0] = -torch.inf
    student.requires_grad_()
    found = logit_divergence(student, teacher, temperature=2.0)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-12)
    assert torch.isfinite(student.grad).all()


def test_images_of_classes_are_rows_of_classes():
    student, teacher = drawn(2, 5, 3, 3), drawn(2, 5, 3, 3, seed=1)
    found = logit_divergence(student, teacher, temperature=2.0, class_dim=1)
    rows = [each.permute(0, 2, 3, 1).reshape(-1, 5) for each in (student, teacher)]
    assert float(found) == pytest.approx(divergence(*rows, 2.0, None), rel=1e-12)


def test_high_temperatures_compare_centred_logits():
    """Hinton et al., 2015, eq. 4: in the limit the gradient is that of half the mean square of the logits."""
    student, teacher = drawn(4, 6).requires_grad_(), drawn(4, 6, seed=1)
    logit_divergence(student, teacher, temperature=1e4).backward()
    centred = [each - each.mean(-1, keepdim=True) for each in (student.detach(), teacher)]
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / (4 * 6), rtol=1e-3, atol=1e-6)
