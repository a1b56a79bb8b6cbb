"""The laws of the objective: zero where the student is the teacher, whatever the order and the padding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.distributed.launching import launch
from tests.recover.distilling import WORDS, family, sentence, words
from tests.recover.distilling_together import gradients
from torch import nn

import prunekit as pk
from prunekit.ranks import Ranks
from prunekit.recover import Task, TrainingSettings, train
from prunekit.workload import Batch, Split

EVERYTHING = pk.DistillationSettings(logits=1, hidden=1, attention=1)
KINDS = pytest.mark.parametrize("kind", ["bert", "llama"])


def itself(kind, settings=EVERYTHING, **more):
    """A teacher that learns from itself, by the names of its own modules."""
    made = family(kind, "neuron")
    place = {"bert": "bert.encoder.layer.*", "llama": "model.layers.*"}[kind]
    attention = {"bert": ".attention.self", "llama": ".self_attn"}[kind]
    named = {"hidden_modules": [place], "attention_modules": [place + attention]}
    settings = pk.DistillationSettings(**{**vars(settings), **named})
    return made.teacher, pk.Distillation(
        made.teacher, settings, student=made.teacher, example=words(WORDS), **more
    )


def learning(kind, granularity, **settings):
    made = family(kind, granularity)
    student = made.student
    given = pk.DistillationSettings(**{**vars(EVERYTHING), **settings})
    return student, pk.Distillation(made.teacher, given, student=student, lineage=made.lineage)


def value(loss):
    return float(loss.detach())


@KINDS
@pytest.mark.parametrize("hidden_distance", ["mse", "cosine"])
@pytest.mark.parametrize("attention_distance", ["kl", "mse"])
def test_a_student_that_is_the_teacher_is_at_zero(kind, hidden_distance, attention_distance):
    settings = {
        **vars(EVERYTHING),
        "hidden_distance": hidden_distance,
        "attention_distance": attention_distance,
    }
    model, objective = itself(kind, pk.DistillationSettings(**settings))
    assert value(objective(model, words(WORDS))) == 0
    assert {name: float(each) for name, each in objective.terms.items()} == {
        "logits": 0,
        "hidden": 0,
        "attention": 0,
    }


@KINDS
@pytest.mark.parametrize("granularity", ["head", "neuron"])
def test_a_student_without_what_did_nothing_is_at_zero(kind, granularity):
    """The oracle is the plan: units whose outputs are zero go, and nothing changes."""
    made = family(kind, granularity)
    teacher = pk.mask(made.teacher, made.plan, made.groups)
    student = pk.remove(teacher, made.plan, made.groups).model.double()
    teacher.double()
    objective = pk.Distillation(teacher, EVERYTHING, student=student, lineage=made.lineage)
    objective(student, words(WORDS))
    for name, found in objective.terms.items():
        assert abs(float(found)) < 1e-12, name
    other, objective = learning(kind, granularity)
    objective(other, words(WORDS))
    assert float(objective.terms["hidden"]) > 1e-4


@KINDS
@pytest.mark.parametrize("granularity", ["head", "neuron", "hidden", "layer"])
@pytest.mark.parametrize("projection", ["identity", "linear"])
def test_order_and_padding_change_nothing(kind, granularity, projection):
    student, objective = learning(kind, granularity, projection=projection)
    student.double(), objective.double()
    expected = value(objective(student, words(WORDS)))
    assert expected > 1e-3
    for batch in (words(WORDS[::-1]), words(WORDS, width=11), words((WORDS[1], WORDS[2], WORDS[0]), width=8)):
        assert value(objective(student, batch)) == pytest.approx(expected, rel=1e-5)


@KINDS
def test_the_mean_is_over_what_counts(kind):
    """Of words of a decoder, or of sentences of an encoder; each alone, weighed by hand."""
    student, objective = learning(kind, "neuron", hidden=0, attention=0)
    alone = [value(objective(student, words([each]))) for each in WORDS]
    weights = [length for _, length in WORDS] if kind == "llama" else None
    whole = value(objective(student, words(WORDS)))
    assert whole == pytest.approx(np.average(alone, weights=weights), rel=1e-4)


@pytest.mark.parametrize("causal", [None, True, False])
@pytest.mark.parametrize("where", ["target", "labels"])
def test_words_whose_label_is_ignored_do_not_count(causal, where):
    """By the closed form: in a decoder the label of the next word says whether a word counts."""
    student, objective = learning("llama", "neuron", hidden=0, attention=0, causal=causal)
    batch = words(WORDS)
    labels = torch.where(batch.kwargs["attention_mask"].bool(), batch.kwargs["input_ids"], -100)
    labels[1, :4] = -100
    has = labels != -100
    if causal is not False:
        has = torch.cat([has[:, 1:], torch.zeros(3, 1, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        q, p = (
            F.log_softmax(each(**batch.kwargs).logits / 2, -1)[has] for each in (student, objective.teacher)
        )
    expected = 4 * float((p.exp() * (p - q)).sum(-1).mean())
    if where == "labels":
        batch = Batch(args=(), kwargs={**batch.kwargs, "labels": labels}, ids=batch.ids)
    else:
        batch = Batch(args=(), kwargs=batch.kwargs, target=labels, ids=batch.ids)
    assert value(objective(student, batch)) == pytest.approx(expected, rel=1e-5)


@KINDS
def test_positions_that_the_user_counts(kind):
    """The oracle is the attention mask, given by another name."""
    student, objective = learning(kind, "neuron")
    expected = value(objective(student, words(WORDS)))
    made = family(kind, "neuron")
    own = pk.Distillation(
        made.teacher,
        EVERYTHING,
        student=student,
        lineage=made.lineage,
        counted=lambda batch: batch.kwargs["input_ids"] != 0,
    )
    assert value(own(student, words(WORDS))) == expected


def test_terms_are_mixed_by_their_weights():
    made, batch = family("bert", "hidden"), words(WORDS)
    batch = Batch(args=(), kwargs=batch.kwargs, target=torch.tensor([0, 2, 1]), ids=batch.ids)
    student = made.student
    weights = {"logits": 0.3, "hidden": 2.0, "attention": 0.0, "task": 0.7}

    def loss(outputs, batch):
        return F.cross_entropy(outputs.logits, batch.target)

    settings = pk.DistillationSettings(**weights)
    objective = pk.Distillation(made.teacher, settings, student=student, lineage=made.lineage, loss=loss)
    found = value(objective(student, batch))
    assert set(objective.terms) == {"logits", "hidden", "task"}
    with torch.no_grad():
        assert float(objective.terms["task"]) == float(loss(student(**batch.kwargs), batch))
    mixed = sum(weights[name] * float(each) for name, each in objective.terms.items())
    assert found == pytest.approx(mixed, rel=1e-6)


@KINDS
def test_learning_without_labels_comes_nearer(kind):
    student, objective = learning(kind, "hidden", projection="linear")
    student.train()
    trained = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = attentive(student, objective, words(WORDS))
        loss.backward()
        optimizer.step()
        losses.append(value(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in trained)


def attentive(student, objective, batch):
    """Dropout of attention is off, that of hidden states stays."""
    for module in student.modules():
        if type(getattr(module, "attention_dropout", None)) is float:
            module.attention_dropout = 0.0
        if type(module).__name__.endswith("SelfAttention"):
            module.dropout.p = 0.0
    return objective(student, batch)


def test_projections_are_all_that_is_trained_and_saved():
    made = family("bert", "hidden")
    student, objective = learning("bert", "hidden", projection="linear")
    assert [tuple(each.shape) for each in objective.parameters()] == [(24, 12)] * 3
    assert set(objective.state_dict()) == {f"projections.{place}.weight" for place in range(3)}
    teachers = {id(each) for each in made.teacher.parameters()}
    assert teachers.isdisjoint(id(each) for each in objective.parameters())
    assert made.teacher not in list(objective.modules())
    objective(student, words(WORDS)).backward()
    assert all(float(each.grad.abs().sum()) > 0 for each in objective.parameters())
    again = learning("bert", "hidden", projection="linear")[1]
    assert all(map(torch.equal, objective.parameters(), again.parameters()))


def test_a_projection_begins_at_the_kept_units_and_makes_no_random_number():
    made = family("bert", "hidden")
    before = torch.get_rng_state()
    _, objective = learning("bert", "hidden", projection="linear")
    assert torch.equal(torch.get_rng_state(), before)
    kept = made.lineage.kept("hidden", "bert.encoder.layer.0", 3)[2]
    expected = torch.zeros(24, 12)
    expected[kept, torch.arange(12)] = 1
    assert torch.equal(objective.projections[0].weight.detach(), expected)


class Net(nn.Module):
    """Feature maps, statistics, dropout and outputs of some structure."""

    def __init__(self, width=8, outputs=lambda logits: logits):
        super().__init__()
        torch.manual_seed(width)
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, 4))
        self.outputs = outputs

    def forward(self, x):
        return self.outputs(self.last(self.first(x)))


def images(count=6):
    x = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return Batch(args=(x,), ids=tuple(map(str, range(count))))


def test_the_teacher_is_left_as_it_is_found():
    teacher, student = Net(), Net(5)
    teacher.train()
    teacher.first[1].eval()
    teacher.last[3].weight.requires_grad_(False)
    before = copy.deepcopy(teacher)
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["first"], projection="linear")
    objective = pk.Distillation(teacher, settings, student=student, example=images())
    objective.train()
    torch.manual_seed(0)
    random = torch.get_rng_state()
    objective(student.eval(), images()).backward()
    assert torch.equal(torch.get_rng_state(), random)
    for ours, theirs in zip(teacher.modules(), before.modules(), strict=True):
        assert ours.training == theirs.training
        assert len(ours._forward_hooks) == len(ours._forward_pre_hooks) == 0
    for ours, theirs in zip(teacher.parameters(), before.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad
        assert ours.grad is None
    assert all(map(torch.equal, teacher.state_dict().values(), before.state_dict().values()))


@pytest.mark.parametrize("fails", ["teacher", "student", "loss"])
def test_no_hook_stays_after_an_exception(fails):
    models = {"teacher": Net(), "student": Net()}
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["first", "last"], task=1)

    def refuse(*given):
        raise ArithmeticError("no")

    loss = refuse if fails == "loss" else lambda outputs, batch: outputs.sum()
    objective = pk.Distillation(
        models["teacher"], settings, student=models["student"], example=images(), loss=loss
    )
    if fails != "loss":
        models[fails].outputs = refuse
    with pytest.raises(ArithmeticError):
        objective(models["student"], images())
    hooks = [len(each._forward_hooks) for model in models.values() for each in model.modules()]
    assert hooks == [0] * len(hooks)
    assert models["teacher"].training


def test_feature_maps_are_matched_by_the_plan_and_by_projections():
    """The oracle of the identity is the teacher's own channels, picked by hand."""
    teacher = Net().eval()
    result = pk.prune(teacher, images().args, sparsity=0.5)
    kept = list(result.plan.keep["first.0:channel"])
    with torch.no_grad():
        ours, theirs = (model.first(*images().args) for model in (result.model.eval(), teacher))
    expected = float((ours - theirs[:, kept]).square().mean())
    named = {"logits": 0, "hidden": 1, "hidden_modules": ["first"]}
    for projection in ("identity", "linear"):
        settings = pk.DistillationSettings(**named, projection=projection)
        objective = pk.Distillation(
            teacher, settings, student=result.model, lineage=pk.Lineage.of(result), example=images()
        )
        found = value(objective(result.model, images()))
        if projection == "identity":
            assert found == pytest.approx(expected, rel=1e-6)
        else:
            gone = theirs[:, [unit for unit in range(8) if unit not in kept]].square().sum()
            whole = (float(gone) + expected * ours.numel()) / theirs.numel()
            assert found == pytest.approx(whole, rel=1e-5)


STRUCTURES = {
    "tensor": lambda logits: logits,
    "dict": lambda logits: {"features": logits.sum(), "logits": logits},
    "tuple": lambda logits: (logits, logits.sum(-1)),
    "tuple with a loss first": lambda logits: (logits.sum(), logits),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_logits_are_found_in_every_structure(structure):
    outputs = STRUCTURES[structure]
    expected = value(pk.Distillation(Net())(Net(5).eval(), images()))
    assert value(pk.Distillation(Net(8, outputs))(Net(5, outputs).eval(), images())) == expected
    own = pk.Distillation(Net(), logits_of=lambda given: given if structure == "tensor" else logits_in(given))
    assert value(own(Net(5, outputs).eval(), images())) == expected


def logits_in(given):
    if isinstance(given, torch.Tensor):
        return given
    items = given.values() if isinstance(given, dict) else given
    return next(each for each in items if each.ndim == 2)


def test_wrapped_students_and_graphs_of_them():
    teacher, student = Net(), Net(5).eval()
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["first"], projection="linear")
    objective = pk.Distillation(teacher, settings, student=student, example=images())
    expected = value(objective(student, images()))
    assert value(objective(nn.DataParallel(student), images())) == expected
    graph = torch.export.export(student, images().args).module()
    assert value(pk.Distillation(teacher)(graph, images())) == pytest.approx(
        value(pk.Distillation(teacher)(student, images())), rel=1e-5
    )


def test_a_student_on_two_processes_has_the_gradients_of_one(tmp_path):
    """The oracle is one process with the whole batch."""
    found = launch("tests.recover.distilling_together:gradients", 2, tmp_path)
    for each in found:
        for ours, theirs in zip(each, gradients(Ranks()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_the_training_loop_needs_no_labels_and_keeps_the_best():
    """The validation loss is the only thing that reads labels, and here it has none to read."""
    teacher, student = Net(), Net(5)
    inputs = images(24).args[0]
    unlabelled = torch.utils.data.TensorDataset(inputs, torch.zeros(24))
    with torch.no_grad():
        aims = torch.utils.data.TensorDataset(inputs, teacher.eval()(inputs))
    task = Task(
        loss=lambda outputs, batch: F.mse_loss(outputs, batch.target),
        train=Split("train", unlabelled),
        validation=Split("validation", aims),
    )
    settings = pk.DistillationSettings(hidden=0.1, hidden_modules=["first"], projection="linear")
    objective = pk.Distillation(teacher, settings, student=student, example=images())
    before = objective.projections[0].weight.detach().clone()
    record = train(
        student,
        task,
        TrainingSettings(epochs=8, batch_size=8, learning_rate=0.02, optimizer="adamw"),
        objective=objective,
    )
    losses = [epoch.validation_loss for epoch in record.epochs]
    assert losses[record.best] == min(losses) < 0.8 * losses[0]
    assert not torch.equal(objective.projections[0].weight, before)
    assert all(each.grad is None for each in teacher.parameters())


def test_the_teacher_runs_in_its_own_precision(tmp_path):
    """Under autocast too: what is read back must be what it gives now."""
    teacher, student = Net(), Net(5).eval()
    split = Split("train", torch.utils.data.TensorDataset(images().args[0], torch.zeros(6)))
    objective = pk.Distillation(teacher)
    losses = []
    for again in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(value(objective(student, split.batch(range(6)))))
        if not again:
            objective.remember(split, tmp_path)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_teacher_of_another_type(dtype):
    student, teacher = Net(5).eval(), Net()
    expected = value(pk.Distillation(teacher)(student, images()))
    found = value(pk.Distillation(copy.deepcopy(teacher).to(dtype))(student, images()))
    assert found == pytest.approx(expected, rel=1e-5 if dtype == torch.float64 else 0.1)


def test_sentences_are_what_they_seem():
    """The batches of these tests hold what their names say."""
    batch = words(WORDS, width=9)
    for row, (seed, length) in enumerate(WORDS):
        assert torch.equal(batch.kwargs["input_ids"][row, :length], sentence(seed, length))
        assert int(batch.kwargs["attention_mask"][row].sum()) == length
