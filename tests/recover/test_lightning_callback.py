"""Pruning inside Lightning's Trainer: its own objects go on, checkpoints resume, mistakes are told."""

from __future__ import annotations

import pytest
import torch
from tests.recover.following import same_state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from prunekit.errors import TrainingError, UsageError

pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # what lightning warns about is its own

from prunekit.recover.loops.lightning import PruningCallback  # noqa: E402

STEPS = 8


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        self.loaded = False

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def on_load_checkpoint(self, checkpoint):
        self.loaded = True

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data(count=4):
    """Batches of 4; a resumed epoch may begin with another batch, so that by default there is but one."""
    generator = torch.Generator().manual_seed(1)
    return DataLoader(
        TensorDataset(torch.randn(count, 4, generator=generator), torch.randn(count, 2, generator=generator)),
        batch_size=4,
    )


def shrinking(module, steps):
    return pk.Shrinking(module, (torch.randn(2, 4),), steps=steps, cycles=2)


def trainer(callback, *, steps=STEPS, callbacks=(), **settings):
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, *callbacks],
        **settings,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with a checkpoint after every step; the cuts are after 2 and 4 steps."""
    directory, callback, module = tmp_path_factory.mktemp("whole"), PruningCallback(shrinking), Module()
    every = pl.callbacks.ModelCheckpoint(
        directory, filename="{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True
    )
    held = module.net, list(module.net)
    run = trainer(callback, callbacks=[every])
    run.fit(module, data())
    assert module.net is held[0]
    assert list(module.net) == held[1]
    return directory, callback, run, module


def test_lightnings_own_objects_go_on(whole):
    # Oracle: the widths that a uniform half leaves, and the state that an AdamW of these shapes has.
    _, callback, run, module = whole
    assert [module.net[place].out_features for place in (0, 2, 4)] == [8, 4, 2]
    (optimizer,) = run.optimizers
    pk.check_optimizer(optimizer, module)
    assert all(optimizer.state[each]["exp_avg"].shape == each.shape for each in module.parameters())
    assert {int(optimizer.state[each]["step"]) for each in module.parameters()} == {STEPS}
    assert run.lr_scheduler_configs[0].scheduler.optimizer is optimizer
    assert {name: left for name, (_, left) in callback.plan.widths.items()} == {
        "net.0:neuron": 8,
        "net.2:neuron": 4,
    }


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_resumed_run_is_the_uninterrupted_one(step, whole):
    # Oracle: the run that was not interrupted, bit by bit.
    directory, first, run, expected = whole
    callback, module = PruningCallback(shrinking), Module()
    again = trainer(callback)
    again.fit(module, data(), ckpt_path=str(directory / f"step={step}.ckpt"), weights_only=True)
    same_state(module.state_dict(), expected.state_dict())
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        same_state(again.optimizers[0].state[one], run.optimizers[0].state[other])
    assert callback.plan.keep == first.plan.keep
    assert module.loaded
    assert "on_load_checkpoint" not in vars(module)


def test_steps_are_counted_where_gradients_accumulate():
    # Oracle: 8 examples in batches of 4, two batches a step: 1 step an epoch, 4 in four.
    seen = []

    class Counting:
        plan = None

        def step(self):
            seen.append(len(seen) + 1)

        def state_dict(self):
            return {}

        def load_state_dict(self, state_dict, /):
            raise AssertionError

    def make(module, steps):
        seen.append(-steps)
        return Counting()

    run = trainer(PruningCallback(make), steps=-1, max_epochs=4, accumulate_grad_batches=2)
    run.fit(Module(), data(8))
    assert seen == [-4, 2, 3, 4, 5]


def test_one_plan_and_masks_that_are_folded():
    module, x = Module(), torch.randn(2, 4)
    result = pk.prune(module, (x,), sparsity=0.5)
    callback = PruningCallback(plan=result.plan, groups=result.groups)
    trainer(callback).fit(module, data())
    assert [module.net[place].out_features for place in (0, 2, 4)] == [8, 4, 2]
    masked = Module()
    plan = pk.mask_weights(masked, sparsity=0.5, in_place=True).plan
    names = list(Module().state_dict())

    class Still:
        def step(self): ...

        def state_dict(self):
            return {}

    trainer(PruningCallback(lambda module, steps: Still())).fit(masked, data())
    assert list(masked.state_dict()) == names
    zeros = {name: int((masked.get_parameter(name) == 0).sum()) for name in plan.masks}
    assert zeros == {name: mask.count - mask.kept for name, mask in plan.masks.items()}


def test_mistakes_are_told(whole):
    with pytest.raises(UsageError, match="neither"):
        PruningCallback()
    result = pk.prune(Module(), (torch.randn(2, 4),), sparsity=0.5)
    with pytest.raises(UsageError, match="a schedule and a plan"):
        PruningCallback(shrinking, plan=result.plan, groups=result.groups)
    with pytest.raises(TrainingError, match="already"):
        trainer(whole[1]).fit(Module(), data())
    with pytest.raises(UsageError, match="known number"):
        trainer(PruningCallback(shrinking), steps=-1, max_epochs=-1).fit(Module(), data())


def test_an_optimizer_of_another_model_is_told():
    class Strange(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)

    with pytest.raises(TrainingError, match="are not those of"):
        trainer(PruningCallback(shrinking)).fit(Strange(), data())


def test_sharded_trainers_are_refused():
    from lightning.pytorch.strategies import FSDPStrategy

    class Trainer:
        strategy = FSDPStrategy()

    with pytest.raises(UsageError, match="FSDPStrategy"):
        PruningCallback(shrinking).setup(Trainer(), Module(), "fit")
