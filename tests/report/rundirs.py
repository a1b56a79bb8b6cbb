"""Small, realistic run directories: what the stages write, made from a seed instead of from training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from tests.report.deciding import write_baseline, write_cycle
from tests.report.delivering import write_evaluation, write_export, write_gate, write_validation
from tests.report.sample import ACCEPTED, Sample

RECIPE = """\
name: {name}
workload: workload.py
goal: {{kind: macs, remove: 0.5, scope: global}}
schedule: {{cycles: {cycles}, curve: cubic}}
importance: {{criterion: taylor}}
gates:
  - max_quality_drop: 0.02
  - max_slice_drop: {{limit: {slice_limit}, by: point}}
  - min_speedup: {min_speedup}
  - max_size_bytes: 2000000
"""


def write_run(root: Path, sample: Sample = ACCEPTED) -> Path:
    """Make a finished run directory."""
    rng = np.random.default_rng(sample.seed)
    recipe = RECIPE.format(
        name=sample.name,
        cycles=sample.cycles,
        slice_limit=sample.slice_limit,
        min_speedup=sample.min_speedup,
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.yaml").write_text(recipe, encoding="utf-8")
    identity = {
        "name": sample.name,
        "workload": "../../workload.py",
        "prunekit_version": "0.1.0",
        "recipe_digest": hashlib.sha256(recipe.encode()).hexdigest(),
    }
    (root / "run.json").write_text(json.dumps(identity, indent=2))
    widths = {name: 32 * 2 ** min(2, i * 3 // sample.layers) for i, name in enumerate(sample.layer_names())}
    dense_cost = {"params": 1_274_826, "macs": 97_412_608, "param_bytes": 5_099_304}
    write_baseline(root, sample, widths, dense_cost)
    for number in range(1, sample.cycles + 1):
        write_cycle(root, sample, number, widths, dense_cost, rng)
    write_export(root)
    validation = write_validation(root, sample, rng)
    evaluation = write_evaluation(root, sample, rng)
    write_gate(root, sample, evaluation, validation)
    return root
