"""The examples of other people's loops run, and come out as they say."""

import runpy
from pathlib import Path

import pytest
import torch

import prunekit as pk

LOOPS = Path(__file__).parents[1] / "examples" / "loops"


@pytest.fixture
def outcome(monkeypatch, capsys):
    def run(name):
        monkeypatch.syspath_prepend(str(LOOPS))
        return runpy.run_path(str(LOOPS / f"{name}.py"))["main"]()

    return run


def check_states(optimizer, model, name):
    """The optimizer trains this model and nothing else, and every state has the shape of its parameter."""
    pk.check_optimizer(optimizer, model)
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in model.parameters()}
    assert all(optimizer.state[each][name].shape == each.shape for each in model.parameters())


def test_the_bare_loop(outcome):
    found = outcome("bare_loop")
    model, average = found["model"], found["average"]
    assert [model[place].out_channels for place in (0, 3)] == [16, 32]
    check_states(found["optimizer"], model, "exp_avg")
    assert int(average.n_averaged) == 96
    shapes = [[tuple(each.shape) for each in net.parameters()] for net in (average.module, model)]
    assert shapes[0] == shapes[1]
    assert found["accuracy"] > 0.85


@pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own
def test_the_loop_of_transformers(outcome):
    pytest.importorskip("transformers")
    found = outcome("trainer_loop")
    run = found["trainer"]
    assert {left for _, left in found["callback"].plan.widths.values()} == {32}
    assert run.model.config.intermediate_size == 32
    check_states(run.optimizer.optimizer, run.model, "exp_avg")
    assert found["accuracy"] > 0.5


@pytest.mark.filterwarnings("ignore")  # what lightning warns about is its own
def test_the_loop_of_lightning(outcome):
    pytest.importorskip("lightning")
    found = outcome("lightning_loop")
    assert found["macs"] == pytest.approx(0.4, rel=0.02)
    check_states(found["trainer"].optimizers[0], found["module"], "momentum_buffer")
    assert found["trainer"].lr_scheduler_configs[0].scheduler.optimizer is found["trainer"].optimizers[0]
    assert found["accuracy"] > 0.85
    assert all(torch.isfinite(each).all() for each in found["module"].parameters())
