"""The parent runs once: what is read back is what it gave, bit for bit, and never what is stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.recover.distilling import family, sentences, words
from torch import nn

import prunekit as pk
from prunekit import files
from prunekit.errors import StorageError, TrainingError, UsageError
from prunekit.recover.distillation import remembered
from prunekit.workload import Batch, Split

EXAMPLES = tuple((seed, 2 + seed % 6) for seed in range(11))
EVERYTHING = pk.DistillationSettings(logits=1, hidden=1, attention=1)


def objective_of(kind="bert", granularity="hidden", settings=EVERYTHING, **more):
    made = family(kind, granularity)
    student = made.student
    return student, pk.Distillation(made.teacher, settings, student=student, lineage=made.lineage, **more)


def small(teacher=None, **settings):
    """Logits of a linear layer, for what has nothing to do with models."""
    torch.manual_seed(0)
    teacher = teacher or nn.Linear(3, 4)
    return nn.Linear(3, 4), pk.Distillation(teacher, pk.DistillationSettings(**settings))


def numbers(count=10, seed=0, name="train"):
    generator = torch.Generator().manual_seed(seed)
    examples = torch.utils.data.TensorDataset(torch.randn(count, 3, generator=generator), torch.arange(count))
    return Split(name, examples)


def same(left, right):
    return torch.equal(left.detach(), right.detach())


@pytest.mark.parametrize(
    ("kind", "granularity"),
    [("bert", "head"), ("bert", "layer"), ("llama", "hidden"), ("llama", "layer")],
)
def test_what_is_read_back_is_what_was_given_bit_for_bit(kind, granularity, tmp_path):
    """The oracle is the teacher's run on the same batch."""
    student, objective = objective_of(kind, granularity)
    batches = [words(EXAMPLES[at : at + 4]) for at in range(0, 11, 4)]
    expected = [objective(student, batch) for batch in batches]
    assert not objective.remembers_examples
    done = objective.remember(sentences(EXAMPLES), tmp_path, batch_size=4, shard_bytes=6000)
    assert (done.examples, done.computed, done.reason) == (11, 11, "there were none")
    assert objective.remembers_examples
    calls = counted_calls(objective.teacher)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert all(map(same, (objective(student, batch) for batch in batches), expected))
    assert calls == []


def counted_calls(teacher):
    calls = []
    teacher.register_forward_hook(lambda *given: calls.append(1))
    return calls


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_any_order_company_and_padding_will_do(kind, tmp_path):
    """The oracle is the teacher's own run, up to what other batches round."""
    student, objective = objective_of(kind)
    fresh = objective_of(kind)[1]
    objective.remember(sentences(EXAMPLES), tmp_path, batch_size=4)
    for order, width in ((range(11), 7), ((5, 0, 9), 7), ((10, 3), 12), ((2,), 7)):
        batch = words([EXAMPLES[place] for place in order], width=width)
        found, expected = (float(each(student, batch).detach()) for each in (objective, fresh))
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_the_same(tmp_path):
    student, objective = objective_of(settings=pk.DistillationSettings(hidden=1, projection="linear"))
    batch, gradients = words(EXAMPLES[:4]), []
    for again in range(2):
        objective.zero_grad(), student.zero_grad()
        objective(student, batch).backward()
        gradients.append(
            [
                each.grad.clone()
                for each in (*student.parameters(), *objective.parameters())
                if each.grad is not None
            ]
        )
        if not again:
            objective.remember(sentences(EXAMPLES), tmp_path, batch_size=4)
    assert len(gradients[0]) > 10
    assert all(map(torch.equal, *gradients))


def test_several_splits_and_students_share_what_there_is(tmp_path):
    """A student of fewer terms reads the same files; two splits lie in two directories."""
    _, objective = objective_of("bert", "hidden")
    objective.remember(sentences(EXAMPLES), tmp_path / "first")
    settings = pk.DistillationSettings(logits=1, attention=1)
    student, other = objective_of("bert", "head", settings)
    assert other.remember(sentences(EXAMPLES), tmp_path / "first").computed == 0
    more = tuple((seed, 4) for seed in range(50, 53))
    assert other.remember(sentences(more), tmp_path / "second").computed == 3
    fresh = objective_of("bert", "head", settings)[1]
    batch = words((EXAMPLES[3], more[1]))
    assert float(other(student, batch).detach()) == pytest.approx(
        float(fresh(student, batch).detach()), rel=1e-5
    )
    with pytest.raises(UsageError, match="remembered already"):
        other.remember(sentences(more), tmp_path / "third")


KILLED = """
import os, signal, sys
import torch
import prunekit as pk
import prunekit.workload
from prunekit import files
left = [int(sys.argv[2])]
def doomed(path):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path)
whole, files.flush = files.flush, doomed
generator = torch.Generator().manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(10, 3, generator=generator), torch.arange(10))
torch.manual_seed(0)
objective = pk.Distillation(torch.nn.Linear(3, 4))
objective.remember(prunekit.workload.Split("train", data), sys.argv[1], batch_size=2, shard_bytes=1)
"""


@pytest.mark.parametrize("flushes", [1, 7, 12])
def test_what_a_kill_leaves_is_completed(flushes, tmp_path):
    """Killed at the first file, at a later one, and in the index; the oracle is a whole run."""
    code = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(flushes)]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), str(root / "src")))
    run = subprocess.run(code, cwd=root, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert run.returncode == -signal.SIGKILL
    student, objective = small()
    whole = small()[1]
    done = objective.remember(numbers(), tmp_path / "killed", batch_size=5, shard_bytes=2**20)
    whole.remember(numbers(), tmp_path / "whole", batch_size=2, shard_bytes=1)
    assert 0 < done.computed <= 10
    assert ("complete" in done.reason) == (flushes > 4)
    batch = numbers().batch(range(10))
    assert same(objective(student, batch), whole(student, batch))
    assert objective.remember(numbers(), tmp_path / "killed").computed == 0
    assert flushes == 1 or done.computed < 10


@pytest.mark.parametrize("damage", ["cut off", "one bit", "missing"])
def test_what_is_damaged_is_computed_again_and_said(damage, tmp_path):
    student, objective = small()
    objective.remember(numbers(), tmp_path, batch_size=2, shard_bytes=1)
    expected = objective(student, numbers().batch(range(10)))
    path = sorted(tmp_path.glob("*.safetensors"))[2]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "one bit" else content[:-1])
    if damage == "missing":
        path.unlink()
    again = small()[1]
    done = again.remember(numbers(), tmp_path)
    assert (done.computed, done.reason) == (2, f"{path.name} was damaged or missing")
    assert same(again(student, numbers().batch(range(10))), expected)


def test_a_file_that_goes_while_it_is_used_is_an_error_of_storage(tmp_path):
    student, objective = small()
    objective.remember(numbers(), tmp_path, batch_size=2, shard_bytes=1)
    sorted(tmp_path.glob("*.safetensors"))[0].write_bytes(b"nothing")
    with pytest.raises(StorageError, match=r"could not be read back.*Call remember\(\) again"):
        objective(student, numbers().batch(range(10)))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema": "prunekit.parent_outputs/1"}'])
def test_a_damaged_index_is_refused_or_replaced(content, tmp_path):
    small()[1].remember(numbers(), tmp_path)
    (tmp_path / remembered.INDEX).write_bytes(content)
    with pytest.raises(StorageError, match="Delete the directory"):
        small()[1].remember(numbers(), tmp_path)
    assert small()[1].remember(numbers(), tmp_path, rebuild=True).computed == 10


def changed():
    torch.manual_seed(0)
    other = nn.Linear(3, 4)
    with torch.no_grad():
        other.weight[0, 0] += 1e-6
    return other


STALE = {
    "another teacher": (lambda: small(changed())[1], numbers, "a teacher with other weights"),
    "other examples": (lambda: small()[1], lambda: numbers(seed=1), "from other examples"),
    "fewer examples": (lambda: small()[1], lambda: numbers(9), "from other examples"),
    "other logits": (
        lambda: pk.Distillation(small()[1].teacher, logits_of=lambda outputs: outputs[:, :2]),
        numbers,
        "another way to find the logits",
    ),
    "more terms": (
        lambda: pk.Distillation(
            small()[1].teacher,
            pk.DistillationSettings(hidden=1, hidden_modules={"": ""}),
            student=nn.Linear(3, 4),
            example=numbers().batch([0, 1]),
        ),
        numbers,
        "they lack hidden/",
    ),
}


@pytest.mark.parametrize("name", STALE)
def test_what_is_stale_is_refused_with_the_reason_and_rebuilt_on_request(name, tmp_path):
    make, split, reason = STALE[name]
    small()[1].remember(numbers(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=f"stale: .*{reason}.*rebuild=True"):
        make().remember(split(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    done = make().remember(split(), tmp_path, rebuild=True)
    assert done.computed == len(split())
    assert reason in done.reason


def test_a_full_disk_leaves_what_was_complete(tmp_path, monkeypatch):
    student, objective = small()
    calls = []

    def full(path):
        calls.append(path)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", full)
        with pytest.raises(StorageError, match=r"No space left.*Make room and call remember\(\) again"):
            objective.remember(numbers(), tmp_path, batch_size=2, shard_bytes=1)
    assert not objective.remembers_examples
    assert [path for path in tmp_path.iterdir() if path.name.endswith(files.PARTIAL)] == []
    done = objective.remember(numbers(), tmp_path, batch_size=2, shard_bytes=1)
    assert 0 < done.computed < 10
    assert objective(student, numbers().batch(range(10))) > 0


def test_other_inputs_under_the_same_id_are_refused(tmp_path):
    """Augmented: a flipped and a shifted copy; labels may differ, or be missing."""
    student, objective = small()
    objective.remember(numbers(), tmp_path)
    batch = numbers().batch([4, 2, 7])
    objective(student, Batch(args=batch.args, ids=batch.ids))
    for args in ((batch.args[0].flip(1),), (batch.args[0] + 1,)):
        fresh = small()[1]
        fresh.remember(numbers(), tmp_path)
        with pytest.raises(
            TrainingError, match=r"train/4.*not those that the parent saw.*without augmentation"
        ):
            fresh(student, Batch(args=args, ids=batch.ids))


def test_examples_that_are_unknown_are_refused(tmp_path):
    student, objective = small()
    objective.remember(numbers(), tmp_path)
    with pytest.raises(TrainingError, match=r"'validation/0' are not remembered.*Call remember\(\)"):
        objective(student, numbers(name="validation").batch([0]))
    with pytest.raises(TrainingError, match="a batch without ids are not remembered"):
        objective(student, Batch(args=(torch.zeros(2, 3),)))


def test_a_batch_with_more_words_than_the_parent_saw_is_refused(tmp_path):
    student, objective = objective_of()
    objective.remember(sentences(EXAMPLES), tmp_path)
    batch = words(EXAMPLES[:2])
    mask = torch.ones_like(batch.kwargs["attention_mask"])
    longer = Batch(args=(), kwargs={**batch.kwargs, "attention_mask": mask}, ids=batch.ids)
    with pytest.raises(TrainingError, match=r"not those that the parent saw"):
        objective(student, longer)


def test_the_index_says_what_is_there(tmp_path):
    objective = small()[1]
    seen = []
    objective.remember(
        numbers(),
        tmp_path,
        batch_size=4,
        shard_bytes=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    content = json.loads((tmp_path / remembered.INDEX).read_text())
    assert content["schema"] == "prunekit.parent_outputs/1"
    assert content["keys"] == ["logits"]
    assert [(each["start"], each["stop"]) for each in content["shards"]] == [(0, 4), (4, 8), (8, 10)]
    digests = [files.file_digest(tmp_path / each["file"]) for each in content["shards"]]
    assert [each["digest"] for each in content["shards"]] == digests


def test_bad_sizes_and_nothing_to_remember():
    for given in ({"batch_size": 0}, {"shard_bytes": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            small()[1].remember(numbers(), "nowhere", **given)
    alone = pk.Distillation(
        nn.Linear(3, 4), pk.DistillationSettings(logits=0, task=1), loss=lambda outputs, batch: outputs.sum()
    )
    with pytest.raises(UsageError, match="no term needs the teacher"):
        alone.remember(numbers(), "nowhere")
