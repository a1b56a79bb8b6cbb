"""What a made-up run is like, and how a stage's directory is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Sample:
    """What kind of run to make up."""

    name: str = "digits"
    cycles: int = 3
    layers: int = 20
    classes: tuple[str, ...] = tuple("0123456789")
    examples: int = 900
    lost: int = 9
    gained: int = 4
    speedup: float = 2.3
    min_speedup: float = 2.0
    slice_limit: float = 0.08
    layer_name: str = "layer{0}.{1}.conv{2}.weight:0"
    seed: int = 0
    extra_frozen: int = 12
    slices: tuple[str, ...] = ("thick", "thin")

    def layer_names(self) -> list[str]:
        return [self.layer_name.format(i // 8 + 1, i % 8 // 2, i % 2 + 1) for i in range(self.layers)]


HOSTILE = Sample(
    name="<script>alert('run')</script>",
    layers=80,
    layer_name="blocks.{0}.<script>alert({1}{2})</script>.\"&'.weight:0",
    classes=("<b>cat</b>", "\u202eright-to-left", "a" * 200, "ünïcode 猫", "{{ 7 * 7 }}", "</style>"),
    slices=("<img src=x onerror=alert(1)>",),
    extra_frozen=60,
)
REFUSED = Sample(name="digits-aggressive", speedup=1.62, lost=41, gained=9, seed=3)
ACCEPTED = Sample()


def write_stage(root: Path, stage: str, result: Any, tables: dict[str, pd.DataFrame] | None = None) -> dict:
    """Write one stage's directory as the workflow does; return the result as JSON gives it back."""
    directory = root / "stages" / stage
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (directory / "result.json").write_text(text)
    for name, table in (tables or {}).items():
        table.to_parquet(directory / name, index=False)
    outputs = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.name != "stage.json"
    }
    if stage.endswith(("/prune", "/recover", "baseline")):
        outputs["weights.safetensors"] = hashlib.sha256(stage.encode()).hexdigest()
    if stage.endswith("/plan"):
        outputs["plan.json"] = hashlib.sha256(stage.encode()).hexdigest()
    record = {
        "stage": stage,
        "inputs": {"recipe": "0" * 64},
        "outputs": outputs,
        "started": "2026-11-21T04:50:31+00:00",
        "seconds": round(1.3 + len(stage) * 0.71, 3),
    }
    (directory / "stage.json").write_text(json.dumps(record, indent=2))
    return json.loads(text)
