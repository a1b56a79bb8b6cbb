from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from prunekit.errors import WorkloadError
from prunekit.workload import (
    DecidingWorkload,
    ImageClassification,
    Workload,
    build_parent,
    deciding,
    predict,
)


def test_the_evidence_agrees_with_numpy_in_float64(workload):
    batch = workload.splits.train.batch([0, 3, 5, 7])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 3
    columns = workload.evidence(logits, batch)
    expected = log_softmax(logits.numpy().astype(np.float64), axis=1)
    label = batch.target.numpy()
    names = np.array(["ant", "bee", "cat"])
    assert columns["example_id"].tolist() == ["train/0", "train/3", "train/5", "train/7"]
    assert columns["label"].tolist() == names[label].tolist()
    assert columns["prediction"].tolist() == names[expected.argmax(1)].tolist()
    assert columns["correct"].tolist() == (expected.argmax(1) == label).tolist()
    np.testing.assert_allclose(columns["loss"], -expected[np.arange(4), label], rtol=1e-5)
    np.testing.assert_allclose(columns["confidence"], np.exp(expected).max(1), rtol=1e-5)
    bright = batch.args[0].numpy().mean((1, 2, 3)) > 0
    assert columns["slice:bright"].tolist() == bright.tolist()


def test_the_loss_is_the_mean_of_the_evidence(workload):
    batch = workload.splits.train.batch(range(6))
    logits = torch.randn(6, 3)
    mean = workload.evidence(logits, batch)["loss"].mean()
    assert workload.loss(logits, batch).item() == pytest.approx(mean, rel=1e-5)
    assert workload.loss(SimpleNamespace(logits=logits), batch).item() == pytest.approx(mean, rel=1e-5)


def test_a_logit_that_is_not_finite_is_never_correct(workload):
    batch = workload.splits.train.batch([0])
    logits = torch.full((1, 3), float("nan"))
    logits[0, int(batch.target)] = 9.0
    assert workload.evidence(logits, batch)["correct"].tolist() == [False]


@pytest.mark.parametrize("outputs", [torch.zeros(4), SimpleNamespace(scores=1), (torch.zeros(2, 3),)])
def test_outputs_without_logits_are_refused(workload, outputs):
    with pytest.raises(WorkloadError, match=r"logits \[batch, classes\]"):
        workload.loss(outputs, workload.splits.train.batch([0]))


def test_it_is_a_workload_and_so_is_its_deciding_view_without_a_test_split(workload):
    assert isinstance(workload, Workload)
    assert isinstance(deciding(workload), DecidingWorkload)


def test_one_class_is_not_a_classification(workload):
    with pytest.raises(WorkloadError, match="at least two distinct names"):
        ImageClassification(name="x", build=nn.Identity, splits=workload.splits, class_names=("only", "only"))


def test_predict_is_in_split_order_whatever_the_batch_size(workload):
    model = build_parent(workload)
    whole = predict(model, workload.splits.train, workload, batch_size=20)
    parts = predict(model, workload.splits.train, workload, batch_size=7)
    assert whole["example_id"].tolist() == list(workload.splits.train.ids)
    assert whole[["example_id", "label", "prediction"]].equals(parts[["example_id", "label", "prediction"]])
    np.testing.assert_allclose(whole["loss"], parts["loss"], rtol=1e-5)
    assert whole["correct"].dtype == bool
    assert whole["slice:bright"].dtype == bool


def test_predict_evaluates_in_eval_mode_and_leaves_every_mode_as_found(workload):
    model = build_parent(workload)
    model.train()
    model[1].eval()
    before = model[2].running_mean.clone()
    done = []
    predict(model, workload.splits.train, workload, batch_size=8, progress=lambda *args: done.append(args))
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(model[2].running_mean, before)
    assert done == [(8, 20), (16, 20), (20, 20)]


def test_predict_restores_modes_after_a_failure(workload):
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    with pytest.raises(RuntimeError, match="shapes"):
        predict(model, workload.splits.train, workload)
    assert all(module.training for module in model.modules())


def test_predict_refuses_a_sealed_split(workload):
    with pytest.raises(WorkloadError, match="open_test"):
        predict(build_parent(workload), workload.splits.test, workload)
    assert len(predict(build_parent(workload), workload.splits.open_test(), workload)) == 7
