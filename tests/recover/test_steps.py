"""How a step is made: parts, averages, precision, readers; each against plain PyTorch or a closed form."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.errors import UsageError
from prunekit.recover import Task, TrainingSettings, task_of, train, validate
from prunekit.recover.training.average import Average
from prunekit.workload import Split, build_parent


def squared_error(outputs, batch):
    return nn.functional.mse_loss(outputs, batch.target)


def regression(count=22, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator).to(dtype)
    split = Split("train", TensorDataset(inputs, inputs.square().sum(1, keepdim=True)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 1)).to(dtype)
    return model, Task(squared_error, split, split)


@pytest.mark.parametrize("accumulate", [2, 3, 7, 40])
def test_parts_of_a_step_have_the_gradient_of_the_whole(accumulate):
    # 22 examples in steps of 8, 8 and 6: the parts of a step are not of the same size.
    results = []
    for parts in (1, accumulate):
        model, task = regression(dtype=torch.float64)
        settings = TrainingSettings(epochs=3, batch_size=8, learning_rate=0.02, accumulate=parts)
        record = train(model, task, settings)
        results.append((model.state_dict(), [line.train_loss for line in record.epochs[1:]]))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-10, atol=1e-12)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-10)


def test_the_average_is_that_of_its_formula():
    # Oracle: the recursion in NumPy, float64; integer buffers are copied.
    model = nn.BatchNorm1d(3, dtype=torch.float64)
    average, expected = Average(model, 0.95), model.weight.detach().numpy().copy()
    generator = np.random.default_rng(0)
    for step in range(1, 31):
        values = generator.normal(size=3)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(values))
            model.num_batches_tracked += 2
        average.step()
        decay = min(0.95, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * values
    np.testing.assert_allclose(average.tensors["weight"].numpy(), expected, rtol=1e-12)
    assert average.tensors["num_batches_tracked"] == 60
    before = copy.deepcopy(model.state_dict())
    with average.in_place():
        np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_average_is_what_is_validated_and_kept(workload):
    model = build_parent(workload, seed=0)
    settings = TrainingSettings(epochs=4, batch_size=16, learning_rate=0.2, schedule="constant", ema=0.9)
    record = train(model, workload, settings)
    best = record.epochs[record.best]
    found = validate(model, task_of(workload), batch_size=16)
    assert record.best > 0
    assert found == (best.validation_loss, best.validation_metric)
    plain = build_parent(workload, seed=0)
    train(plain, workload, dataclasses.replace(settings, ema=None))
    assert not torch.equal(plain[0].weight, model[0].weight)


def test_mixed_precision_computes_in_bf16_and_keeps_weights_whole():
    model, task = regression()
    seen = set()
    model[0].register_forward_hook(lambda module, args, out: seen.add((module.training, out.dtype)))
    train(model, task, TrainingSettings(epochs=1, batch_size=8, precision="bf16", learning_rate=0.01))
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_readers_change_nothing(workload):
    results = []
    for workers in (0, 2):
        model = build_parent(workload, seed=0)
        train(model, workload, TrainingSettings(epochs=2, batch_size=16, workers=workers))
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_an_objective_without_labels_trains_and_is_validated():
    model, task = regression()
    target = copy.deepcopy(model)
    with torch.no_grad():
        target[3].weight.mul_(3.0)

    def like_the_target(model, batch):
        return nn.functional.mse_loss(model(*batch.args), target(*batch.args).detach())

    unlabelled = dataclasses.replace(task, loss=None)
    settings = TrainingSettings(epochs=20, batch_size=8, learning_rate=0.02)
    record = train(model, unlabelled, settings, objective=like_the_target)
    first, best = record.epochs[0].validation_loss, record.epochs[record.best].validation_loss
    assert best < 0.1 * first
    with pytest.raises(UsageError, match="no loss"):
        train(model, unlabelled, settings)


def test_an_objective_that_remembers_takes_no_changed_examples(workload):
    class Remembering(nn.Module):
        remembers_examples = True

        def forward(self, model, batch):
            return model(*batch.args).square().mean()

    task = dataclasses.replace(task_of(workload), augment=lambda batch, generator: batch)
    with pytest.raises(UsageError, match="remembers them by their ids"):
        train(build_parent(workload), task, TrainingSettings(epochs=1), objective=Remembering())
