"""The made-up runs have the keys that the stages write, so that the other tests mean something."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from prunekit.deploy import OnnxExport
from prunekit.deploy.parity import Difference, Parity, ParityStep
from prunekit.evaluate import Change, Comparison, Flips, GateResult
from prunekit.measure import environment
from prunekit.measure.latency import Noise, Percentiles, Speedup
from prunekit.plan import Goal
from prunekit.recover import TrainingRecord
from prunekit.recover.training.settings import EpochRecord
from prunekit.surgery.laws import LawResult
from prunekit.types import Cost

PLACES = [
    ("baseline", ("cost",), Cost),
    ("baseline", ("training",), TrainingRecord),
    ("cycle-01/plan", ("goal",), Goal),
    ("cycle-01/plan", ("after",), Cost),
    ("cycle-01/prune", ("proof", "laws", 0), LawResult),
    ("cycle-01/recover", ("training",), TrainingRecord),
    ("cycle-01/recover", ("training", "epochs", 0), EpochRecord),
    ("export", ("dense",), OnnxExport),
    ("validate", ("parity",), Parity),
    ("validate", ("parity", "steps", 0), ParityStep),
    ("validate", ("parity", "steps", 0, "difference"), Difference),
    ("validate", ("latency", "dense"), Percentiles),
    ("validate", ("latency", "speedup"), Speedup),
    ("validate", ("latency", "noise"), Noise),
    ("evaluate", (), Comparison),
    ("evaluate", ("overall",), Change),
    ("evaluate", ("flips",), Flips),
    ("gate", ("gates", 0), GateResult),
]


@pytest.mark.parametrize(("stage", "keys", "kind"), PLACES, ids=lambda part: getattr(part, "__name__", None))
def test_the_sample_has_the_keys_of_the_stages(finished, stage, keys, kind):
    value = json.loads((finished["accepted"] / "stages" / stage / "result.json").read_text())
    for key in keys:
        value = value[key]
    assert set(value) == {field.name for field in fields(kind)}


def test_the_sample_environment_has_the_keys_of_the_real_one(finished):
    value = json.loads((finished["accepted"] / "stages/validate/result.json").read_text())["environment"]
    real = environment(1)
    assert set(value) == set(real)
    assert set(value["cpu"]) == set(real["cpu"])
