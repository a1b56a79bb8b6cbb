"""Pruning inside transformers' Trainer: its own objects go on, checkpoints resume, mistakes are told."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

import prunekit as pk
from prunekit.errors import StorageError, TrainingError, UsageError
from prunekit.surgery import WeightMask

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

from prunekit.recover.loops.trainer import STATE, PruningCallback  # noqa: E402

STEPS = 8
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}


class Tokens(TensorDataset):
    def __getitem__(self, index):
        ids, label = super().__getitem__(index)
        return {"input_ids": ids, "labels": label}


class Net(nn.Module):
    """Any module that takes the batch by name and gives a loss."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(31, 8)
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, input_ids, labels=None):
        h = torch.relu(self.second(torch.relu(self.first(self.table(input_ids).mean(1)))))
        logits = self.last(h)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def small():
    torch.manual_seed(0)
    return Net()


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=31, max_position_embeddings=8, num_labels=3, **WIDTHS)
    return transformers.BertForSequenceClassification(config)


def shrinking(net, steps):
    return pk.Shrinking(
        net,
        kwargs={"input_ids": torch.randint(0, 31, (2, 6))},
        steps=steps,
        cycles=2,
        granularity="neuron",
    )


def trainer(directory, callback, build=small, **settings):
    torch.manual_seed(3)
    data = Tokens(torch.randint(0, 31, (16, 6)), torch.randint(0, 3, (16,)))
    given = {"save_strategy": "no", "max_steps": STEPS, **settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **given,
    )
    return transformers.Trainer(
        model=build(), args=arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]
    )


def state_of(run):
    inner = run.optimizer.optimizer
    return [
        {**run.model.state_dict()},
        [inner.state[each] for group in inner.param_groups for each in group["params"]],
        run.lr_scheduler.get_last_lr(),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints every third step; the cuts are after 2 and 4 steps."""
    directory, callback = tmp_path_factory.mktemp("whole"), PruningCallback(shrinking)
    run = trainer(directory, callback, save_strategy="steps", save_steps=3)
    first = run.model
    run.train()
    assert run.model is first
    return directory, callback, run


def test_the_trainers_own_objects_go_on(whole):
    # Oracle: the widths that a uniform half leaves, and the state that an AdamW of these shapes has.
    _, callback, run = whole
    assert (run.model.first.out_features, run.model.second.out_features) == (8, 6)
    assert {name: left for name, (_, left) in callback.plan.widths.items()} == {
        "first:neuron": 8,
        "second:neuron": 6,
        "table:neuron": 4,
    }
    inner = run.optimizer.optimizer
    pk.check_optimizer(inner, run.model)
    held = [each for group in inner.param_groups for each in group["params"]]
    assert {id(each) for each in held} == {id(each) for each in run.model.parameters()}
    assert all(inner.state[each]["exp_avg"].shape == each.shape for each in held)
    assert {int(inner.state[each]["step"]) for each in held} == {STEPS}


def test_a_resumed_run_is_the_uninterrupted_one(whole, tmp_path):
    # Oracle: the run that was not interrupted, bit by bit. Between the two cuts.
    directory, _, run = whole
    callback = PruningCallback(shrinking)
    again = trainer(tmp_path, callback, save_strategy="steps", save_steps=3)
    callback.restore(again, directory / "checkpoint-3")
    again.train(resume_from_checkpoint=str(directory / "checkpoint-3"))
    torch.testing.assert_close(state_of(again), state_of(run), rtol=0, atol=0)
    assert callback.plan.keep == whole[1].plan.keep


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path):
    def make(net, steps):
        return pk.Shrinking(
            net,
            kwargs={"input_ids": torch.randint(0, 31, (2, 6))},
            steps=steps,
            cycles=1,
            only="bert.encoder",
            granularity="neuron",
        )

    run = trainer(
        tmp_path, PruningCallback(make), build=bert, max_steps=2, save_strategy="steps", save_steps=2
    )
    config = run.model.config
    run.train()
    assert run.model.config is config
    assert config.intermediate_size == 12
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    torch.testing.assert_close(loaded.state_dict(), run.model.state_dict(), rtol=0, atol=0)


def test_resuming_without_restoring_is_told(whole, tmp_path):
    directory, _, _ = whole
    path = str(directory / "checkpoint-3")
    with pytest.raises(UsageError, match="restore"):
        trainer(tmp_path, PruningCallback(shrinking)).train(resume_from_checkpoint=path)
    callback = PruningCallback(shrinking)
    run = trainer(tmp_path, callback)
    callback.restore(run, path)
    with pytest.raises(UsageError, match="begins at step 0"):
        run.train()
    with pytest.raises(TrainingError, match="already"):
        callback.restore(run, path)


def test_a_damaged_or_missing_state_is_told(whole, tmp_path):
    run = trainer(tmp_path, PruningCallback(shrinking))
    for content in (None, "{", json.dumps({"steps": "many"})):
        path = tmp_path / "checkpoint-1"
        path.mkdir(exist_ok=True)
        if content is not None:
            (path / STATE).write_text(content)
        with pytest.raises(StorageError, match=STATE):
            PruningCallback(shrinking).restore(run, path)
    with pytest.raises(StorageError, match="none"):
        PruningCallback(shrinking).restore(trainer(tmp_path / "new", PruningCallback(shrinking)), True)


def test_the_best_model_is_one_of_the_last_form(tmp_path):
    # The figure is best before the first cut, and the Trainer would load that model into the smaller one.
    figures = iter([0.9, 0.5, 0.1, 0.2, 0.15, 0.1, 0.1, 0.1])
    callback = PruningCallback(shrinking)
    run = trainer(
        tmp_path,
        callback,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="figure",
        greater_is_better=True,
    )
    run.compute_metrics = lambda given: {"figure": next(figures)}
    run.train()
    assert run.state.best_metric == 0.2
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert run.model.first.out_features == 8


def test_one_plan_in_the_middle(tmp_path):
    net = small()
    tokens = {"input_ids": torch.randint(0, 31, (2, 6))}
    result = pk.prune(net, kwargs=tokens, sparsity=0.5, granularity="neuron")
    callback = PruningCallback(plan=result.plan, groups=result.groups, at=0.5)
    run = trainer(tmp_path, callback)
    run.train()
    assert callback.plan is result.plan
    assert run.model.first.out_features == 8
    with pytest.raises(TrainingError, match="already"):
        run.train()


class Masking:
    """Masks of magnitude from the start, and a count of the steps."""

    def __init__(self, net, steps):
        pk.mask_weights(net, sparsity=0.5, in_place=True)
        self.made = 0

    def step(self):
        self.made += 1

    def state_dict(self):
        return {"step": self.made}

    def load_state_dict(self, state_dict, /):
        self.made = state_dict["step"]


def test_masks_are_resumed_and_folded_at_the_end(tmp_path):
    # Oracle: the run that was not interrupted, bit by bit; zeros counted in the plain model.
    callback = PruningCallback(Masking)
    run = trainer(tmp_path, callback, save_strategy="steps", save_steps=3)
    names = list(run.model.state_dict())
    run.train()
    again = trainer(tmp_path / "again", PruningCallback(Masking))
    with pytest.raises(UsageError, match="is masked there and not here"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    second = PruningCallback(Masking)
    again = trainer(tmp_path / "again", second)
    second.restore(again, tmp_path / "checkpoint-3")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert second.companion.made == callback.companion.made == STEPS
    assert list(again.model.state_dict()) == names
    torch.testing.assert_close(state_of(again), state_of(run), rtol=0, atol=0)
    for layer in (run.model.first, run.model.second, run.model.last):
        assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2


def test_averages_that_the_companion_was_given_follow(tmp_path):
    """Oracle: the model's own shapes; and averages that stayed behind could not be updated."""
    averages = []

    def make(net, steps):
        averages.append(AveragedModel(net))
        return pk.Shrinking(
            net,
            kwargs={"input_ids": torch.randint(0, 31, (2, 6))},
            steps=steps,
            sparsity=0.5,
            cycles=2,
            averages=averages,
        )

    run = trainer(tmp_path, PruningCallback(make))
    run.train()
    average = averages[0]
    assert [each.shape for each in average.module.parameters()] == [
        each.shape for each in run.model.parameters()
    ]
    average.update_parameters(run.model)


def test_momentum_of_what_is_masked_is_cleared(tmp_path):
    """Nobody gives the masks the Trainer's optimizer, whose averages would only fade."""

    def make(net, steps):
        return pk.GradualMasks(net, sparsity=0.5, steps=steps, every=2)

    run = trainer(tmp_path, PruningCallback(make, fold=False))
    run.train()
    inner = run.optimizer.optimizer
    gone = {name: ~mask.keep for name, mask in masks_of(run.model).items()}
    assert sum(int(each.sum()) for each in gone.values()) > 0
    for name, where in gone.items():
        momentum = inner.state[run.model.get_parameter(name)]["exp_avg"]
        assert bool((momentum[where] == 0).all())
        assert not bool((momentum == 0).all())


def masks_of(net):
    """By the name of the stored parameter, its mask."""
    return {
        f"{path.rpartition('.')[0]}.original": module
        for path, module in net.named_modules()
        if isinstance(module, WeightMask)
    }


def test_both_or_neither_is_refused():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    result = pk.prune(net, (x,))
    for given in (
        {},
        {"make": shrinking, "plan": result.plan, "groups": result.groups},
        {"make": shrinking, "groups": result.groups},
        {"make": shrinking, "at": 0.5},
        {"plan": result.plan},
        {"plan": result.plan, "groups": result.groups, "at": 2},
    ):
        with pytest.raises(UsageError):
            PruningCallback(**given)


def test_sharded_trainers_are_refused(monkeypatch, tmp_path):
    from prunekit.recover.loops import trainer as room

    class State:
        _shared_state = {"there": True}
        fsdp_plugin = object()

    monkeypatch.setattr(room, "AcceleratorState", State)
    with pytest.raises(UsageError, match="FSDP"):
        trainer(tmp_path, PruningCallback(shrinking))
