"""Arguments -> one process per model -> JSON and Markdown."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from benchmarks.criteria.compare import measure
from benchmarks.criteria.proof import prove
from benchmarks.criteria.tables import page

from prunekit.measure import environment

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
STUDIES = ("digits", "minilm", "smollm2")
"""The modules of this package that hold a ``STUDY``."""

TIMING = "resnet50"
"""The module that measures how long scoring takes."""


def measure_part(name: str, seeds: int, threads: int) -> None:
    """Measure one model here and put it into the JSON file, beside what is there."""
    torch.set_num_threads(threads)
    room = importlib.import_module(f"benchmarks.criteria.{name}")
    found = room.measure() if name == TIMING else measure(room.STUDY, seeds)
    if name != TIMING:
        found["proofs"] = prove(room.STUDY, found["rows"])
    file = OUT / "criteria.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    about = {"date": date.today().isoformat(), "seeds": seeds, "environment": environment(threads)}
    record[name] = about | found
    order = [*STUDIES, TIMING]
    record = {name: record[name] for name in order if name in record}
    file.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criteria")
    parser.add_argument("--model", choices=(*STUDIES, TIMING), help="measure this one again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", action="store_true", help="measure --model in this process")
    asked = parser.parse_args()
    if asked.here:
        measure_part(asked.model, asked.seeds, asked.threads)
        return
    for name in [asked.model] if asked.model else (*STUDIES, TIMING):
        command = [sys.executable, "-m", __spec__.name.removesuffix(".__main__"), "--here", "--model", name]
        command += ["--seeds", str(asked.seeds), "--threads", str(asked.threads)]
        subprocess.run(command, check=True)
    record = json.loads((OUT / "criteria.json").read_text())
    text = page(record)
    (OUT / "criteria.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
