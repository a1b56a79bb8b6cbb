"""Gradual masks in the training run of the house: the goal is kept, and a run can go on."""

import dataclasses

import pytest
import torch

import prunekit as pk
from prunekit.errors import UsageError
from prunekit.recover import Checkpoints, TrainingSettings, train
from prunekit.workload import build_parent

SETTINGS = TrainingSettings(epochs=4, batch_size=16, learning_rate=0.05, seed=3)
STEPS = 16
LAST = round(0.6 * STEPS)


class Interrupted(Exception):
    pass


def run(workload, *, checkpoints=None, stop_after=None, settings=SETTINGS, **asked):
    model = build_parent(workload, seed=0)
    masks = pk.GradualMasks(
        model, **{"sparsity": 0.9, "steps": STEPS, "end": 0.6, "every": 2, "regrow": "gradient"} | asked
    )

    def progress(done, planned):
        assert planned == STEPS
        if done == stop_after:
            raise Interrupted

    record = train(model, workload, settings, companions=[masks], checkpoints=checkpoints, progress=progress)
    return model, masks, record


@pytest.mark.parametrize("select", ["metric", "loss"])
def test_the_best_weights_are_those_of_a_validation_at_the_final_sparsity(workload, select):
    """The dense model as it came is passed over, and so is every line before the last change."""
    settings = TrainingSettings(epochs=4, batch_size=16, learning_rate=1.0, seed=3, select=select)
    model, masks, record = run(workload, settings=settings)
    assert masks.sparsity == pytest.approx(0.9, abs=0.005)
    folded = pk.fold_masks(model)
    zeros = sum(int((folded.get_parameter(name) == 0).sum()) for name in ("0.weight", "5.weight"))
    assert zeros == round(0.9 * 54) + round(0.9 * 192)
    assert record.epochs[record.best].step >= LAST
    later = [line for line in record.epochs if line.step >= LAST]
    assert record.epochs[record.best].validation_loss <= max(line.validation_loss for line in later)
    if select == "loss":
        assert record.epochs[record.best].validation_loss == min(line.validation_loss for line in later)


def test_companions_are_told_of_the_optimizer_before_the_first_step(workload):
    """Oracle: the model's own parameters."""
    model, told = build_parent(workload, seed=0), []

    class Companion:
        def use(self, *optimizers):
            told.append(
                [id(each) for own in optimizers for group in own.param_groups for each in group["params"]]
            )

        def step(self):
            assert len(told) == 1

        def state_dict(self):
            return {}

        def load_state_dict(self, state_dict, /):
            pass

    train(model, workload, dataclasses.replace(SETTINGS, epochs=1), companions=[Companion()])
    assert set(told[0]) == {id(parameter) for parameter in model.parameters()}


def test_what_is_frozen_may_be_masked_while_the_rest_trains(workload):
    """No optimizer holds it, and none has to; counted in the folded model."""
    model = build_parent(workload, seed=0)
    model.get_submodule("5").requires_grad_(False)
    masks = pk.GradualMasks(
        model, sparsity=0.5, steps=STEPS, every=2, weights=pk.find_weights(model, only=["5.*"])
    )
    train(model, workload, SETTINGS, companions=[masks])
    assert pk.fold_masks(model).get_parameter("5.weight").count_nonzero() == 96


def test_patience_waits_for_the_final_sparsity(workload):
    """A learning rate at which nothing gets better: stopped one line after the first that counts."""
    settings = TrainingSettings(epochs=4, batch_size=16, learning_rate=1e-9, seed=3, patience=1)
    model, _, record = run(workload, settings=settings, end=0.2)
    assert record.epochs[record.best].step >= round(0.2 * STEPS)
    assert record.stopped_early
    assert pk.fold_masks(model).get_parameter("5.weight").count_nonzero() == 192 - round(0.9 * 192)


@pytest.mark.parametrize("stop_after", [3, 7, 13])
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(workload, tmp_path, stop_after):
    expected, _, whole = run(workload)
    checkpoints = Checkpoints(tmp_path / "here", every_steps=2)
    with pytest.raises(Interrupted):
        run(workload, checkpoints=checkpoints, stop_after=stop_after)
    model, masks, record = run(workload, checkpoints=checkpoints)
    assert record.resumed_at == stop_after - 1
    assert record.best == whole.best
    assert masks.state_dict()["step"] == STEPS
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_the_moving_average_has_the_masks_of_the_step_that_is_validated(workload, end):
    """Oracle: the masks of the run without an average, which do not depend on it."""
    found = [
        run(workload, settings=dataclasses.replace(SETTINGS, ema=ema), end=end, every=4, regrow="none")[0]
        for ema in (None, 0.9)
    ]
    for name in ("0.parametrizations.weight.0.packed", "5.parametrizations.weight.0.packed"):
        plain, averaged = (model.state_dict()[name] for model in found)
        assert torch.equal(plain, averaged)


def test_a_state_that_the_masks_refuse_leaves_the_model_as_it_was(workload, tmp_path):
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    run(workload, checkpoints=checkpoints)
    model = build_parent(workload, seed=0)
    masks = pk.GradualMasks(model, sparsity=0.5, steps=STEPS, end=0.6, every=2, regrow="gradient")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match="differs in sparsity"):
        train(model, workload, SETTINGS, companions=[masks], checkpoints=checkpoints)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_that_ends_before_the_final_sparsity_is_refused(workload):
    model = build_parent(workload, seed=0)
    masks = pk.GradualMasks(model, sparsity=0.9, steps=100, end=0.6, every=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match="needs 60 more optimizer steps, and the run has 16"):
        train(model, workload, SETTINGS, companions=[masks])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
