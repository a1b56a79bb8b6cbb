"""The examples of the README run, and give what the text around them says."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from prunekit.workflow import inspect_workload
from prunekit.workload import load_workload

README = Path(__file__).parents[1] / "README.md"
RECOVERY = README.parent / "docs" / "recovery.md"
TRAINING = README.parent / "docs" / "training.md"
PLANNING = README.parent / "docs" / "planning.md"
WORKLOAD = README.parent / "docs" / "workload.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The names that its Python blocks define, run one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    path = tmp_path_factory.mktemp("readme") / "example.py"
    path.write_text("\n\n".join(blocks))
    torch.manual_seed(0)
    return runpy.run_path(str(path))


def test_one_call_removes_half_of_the_units_and_leaves_the_model_as_it_was(example):
    result, model = example["result"], example["model"]
    assert [result.model[place].out_channels for place in (0, 2)] == [32, 32]
    assert [model[place].out_channels for place in (0, 2)] == [64, 64]
    assert result.proof.passed


def test_the_steps_reach_their_goal_and_removed_is_masked(example):
    """The oracle of the removal is the masked model: the same outputs, by the mask law."""
    plan, x = example["plan"], example["x"]
    assert plan.after.macs / plan.before.macs == pytest.approx(0.5, rel=0.02)
    assert example["proof"].passed
    with torch.no_grad():
        torch.testing.assert_close(example["small"](x), example["masked"](x))
    assert {name: len(scores) for name, scores in example["scores"].items()} == dict.fromkeys(plan.widths, 64)


def test_half_of_the_layers_go_and_the_class_stays(example):
    """Six blocks between two linear layers."""
    result = example["shallower"]
    assert len(result.model) == 5
    assert result.form == "own class"
    assert result.proof.passed
    assert len(example["stack"]) == 8


def test_seventy_percent_of_the_single_weights_go(example):
    """The sum over both matrices, counted in the folded model."""
    zeros = [int((example["final"][place].weight == 0).sum()) for place in (0, 2)]
    assert sum(zeros) == round(0.7 * (64 * 128 + 128 * 16))
    assert example["sparse"].plan.sparsity == pytest.approx(0.7, abs=1e-4)
    assert int((example["dense"][0].weight == 0).sum()) == 0


def test_what_is_left_is_reconstructed(example):
    """Each layer's outputs are closer to the dense model's than without the update."""
    restored, swept = example["restored"], example["swept"]
    assert restored.layers
    assert not restored.left_alone
    assert all(layer.after < layer.before for layer in (*restored.layers, *swept.layers))
    for name, mask in swept.plan.masks.items():
        assert mask.kept == mask.count - round(mask.count / 2), name


def test_the_steps_are_all_there(example):
    text = README.read_text(encoding="utf-8")
    steps = ("trace", "find_groups", "collect", "score", "allocate", "mask", "remove", "verify")
    assert [step for step in steps if f"pk.{step}(" not in text] == []
    assert example["groups"].frozen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of packages that peft imports
def test_the_page_on_recovery_takes_the_optimizer_along(tmp_path):
    pytest.importorskip("peft")
    blocks = re.findall(r"```python\n(.*?)```", RECOVERY.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text("\n\n".join(blocks))
    torch.manual_seed(0)
    example = runpy.run_path(str(path))
    assert example["report"].narrowed == ("0.weight", "0.bias", "2.weight")
    assert (example["report"].gone, dict(example["report"].reset)) == ((), {})
    assert int(example["average"].n_averaged) == 2
    assert example["losses"][-1] < 0.7 * example["losses"][0]
    assert set(example["objective"].terms) == {"logits", "hidden"}
    assert example["remembered"].computed == 64
    wide = torch.cat([example["wide"][place].weight.flatten() for place in (0, 2)])
    assert int((wide == 0).sum()) == round(0.9 * 256) + round(0.9 * 128)
    assert [example["smaller"][place].in_features for place in (0, 2)] == [8, 16]
    ticket = torch.cat([example["ticket"][place].weight.flatten() for place in (0, 2)])
    assert int((ticket == 0).sum()) == round(0.8 * 256) + round(0.8 * 128)
    assert example["norms"][1].num_batches_tracked == 4
    assert example["done"].replaced == ("0.weight", "0.bias", "2.weight")
    assert (example["done"].proof.passed, example["held"].out_features) == (True, 16)
    assert example["shrinking"].plan.widths == {"0:neuron": (32, 8)}
    assert example["shrinking"].state_dict()["due"] == [7, 13, 20]
    torch.testing.assert_close(example["net"](example["x"]), example["trained"], rtol=0, atol=0)
    assert [int((example["net"][place].weight == 0).sum()) for place in (0, 2)] == [128, 64]


def test_the_page_on_training_trains(tmp_path):
    """256 examples in batches of 64 are 4 steps an epoch; the best line is the best of the log."""
    blocks = re.findall(r"```python\n(.*?)```", TRAINING.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text("\n\n".join(blocks))
    torch.manual_seed(0)
    record = runpy.run_path(str(path))["record"]
    qualities = [line.validation_metric for line in record.epochs]
    assert (record.steps, [line.step for line in record.epochs]) == (12, [0, 4, 8, 12])
    assert qualities[record.best] == max(qualities) > qualities[0]


def test_the_page_on_the_workload_file_has_one_that_is_read(tmp_path):
    """Three splits and a sealed one; the channels of its one hidden layer can go."""
    (block,) = re.findall(r"```python\n(.*?)```", WORKLOAD.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "workload.py").write_text(block)
    workload = load_workload(tmp_path / "workload.py")
    assert [len(split) for split in workload.splits.deciding] == [256, 64, 64]
    assert "0:channel" in str(inspect_workload(tmp_path / "workload.py"))


@pytest.mark.slow
def test_the_page_on_planning_reaches_twice_the_speed(tmp_path, monkeypatch):
    """The goal of the page, to its tolerance, on whatever machine this is; with nothing kept from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", PLANNING.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(next(block for block in blocks if "measure_target" in block))
    reached = runpy.run_path(str(path))["reached"]
    assert reached.overdone or abs(reached.comparison.speedup.median / 2 - 1) <= 0.1


def test_the_page_on_planning_measures_what_levels_lose(tmp_path):
    """The last level of the curve is what was measured there."""
    blocks = re.findall(r"```python\n(.*?)```", PLANNING.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(next(block for block in blocks if "sensitivities = " in block))
    names = runpy.run_path(str(path))
    ((lever, points),) = names["sensitivities"].items()
    assert lever == names["curve"].lever == "0:neuron"
    assert 0 < points[0.5] < max(points.values())
    assert names["curve"].losses[[4, 7]].tolist() == pytest.approx(list(points.values()))
