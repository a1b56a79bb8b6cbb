"""Each way of pruning reaches the sparsity, spends the budget and leaves a plain model."""

import pytest
import torch
from benchmarks.recovery.cuts import Channels, SingleWeights, groups_of
from benchmarks.recovery.overhead import rebuilt
from benchmarks.recovery.ways import WAYS
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from prunekit.recover import Task, TrainingSettings
from prunekit.workload import Batch, Split

EXAMPLES, BATCH = 64, 8


def network():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4, 3),
    )


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(EXAMPLES, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (EXAMPLES,), generator=generator)
    split = Split("train", TensorDataset(images, labels))
    return Task(
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch.target),
        train=split,
        validation=split,
        metric="correct",
        score=lambda outputs, batch: (outputs.argmax(1) == batch.target).double().numpy(),
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["macs", "weights"])
def test_every_way_ends_at_the_sparsity_and_within_the_budget(task, way, kind):
    torch.manual_seed(0)
    model = network().eval()
    example = Batch(args=(torch.zeros(2, 1, 6, 6),))
    cost = groups_of(model, example).cost()
    cut = {"macs": Channels(example, cost), "weights": SingleWeights()}[kind]
    settings = TrainingSettings(epochs=5, batch_size=BATCH, learning_rate=0.01)
    done = WAYS[way](model, cut, 0.5, task, lambda model: settings, None)
    assert done.left == pytest.approx(0.5, rel=0.06)
    assert done.examples_seen == pytest.approx(5 * EXAMPLES, abs=BATCH * 5)
    assert not done.model.training
    assert not any(parametrize.is_parametrized(module) for module in done.model.modules())
    left = groups_of(done.model, example).cost().macs if kind == "macs" else None
    zeros = [p.count_nonzero() / p.numel() for p in done.model.parameters() if p.ndim >= 2]
    assert (left == pytest.approx(0.5 * cost.macs, rel=0.06)) if left else (min(zeros) < 0.99)


def test_a_network_built_anew_has_the_sizes_of_the_pruned_one():
    torch.manual_seed(0)
    model = network().eval()
    example = Batch(args=(torch.zeros(2, 1, 6, 6),))
    pruned = Channels(example, groups_of(model, example).cost())(model, 0.5)
    fresh = rebuilt(pruned, network())
    sizes = [{name: tuple(p.shape) for name, p in each.named_parameters()} for each in (pruned, fresh)]
    assert sizes[0] == sizes[1]
    assert sizes[0]["0.weight"][0] < 32
    assert not torch.equal(pruned[0].weight, fresh[0].weight)
