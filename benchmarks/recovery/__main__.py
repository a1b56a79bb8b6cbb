"""Arguments -> the cells that are missing, one after the other -> JSON -> Markdown."""

from __future__ import annotations

import argparse
import functools
import importlib
import time
from datetime import date
from pathlib import Path

import torch
from benchmarks.recovery.cells import PUBLISHED, Ledger, commit
from benchmarks.recovery.interrupted import measure_interrupted
from benchmarks.recovery.measure import measure
from benchmarks.recovery.overhead import measure_overhead
from benchmarks.recovery.pages import write_pages

from prunekit.measure import environment

STUDIES = ("fashion", "minilm", "digits")
"""The modules of this package with a ``design`` and a ``subject``."""

OTHERS = ("overhead", "interrupted")
"""Those that measure everything each time."""


def fill(study: str, into: Path, seeds: list[int], threads: int, until: float) -> None:
    """Measure what ``into`` does not hold yet, until that many seconds have passed."""
    torch.set_num_threads(threads)
    room = importlib.import_module(f"benchmarks.recovery.{study}")
    ledger = Ledger(into / f"recovery_{study}.json")
    begun, measured_with = time.monotonic(), commit()
    about = {"study": study, "environment": environment(threads)}
    subject_of = functools.cache(room.subject)
    missing = ledger.missing(room.design(seeds))
    for number, cell in enumerate(missing):
        if time.monotonic() - begun > until:
            break
        found = measure(cell, subject_of(cell.seed))
        ledger.add(cell, found | {"commit": measured_with, "date": date.today().isoformat()}, **about)
        figures = {name: found[name] for name in ("validation", "test", "left", "cpu_seconds")}
        print(f"{number + 1}/{len(missing)}", cell, figures, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--study", choices=(*STUDIES, *OTHERS), help="measure its missing cells first")
    parser.add_argument("--into", type=Path, default=PUBLISHED, help="where the JSON files are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds after which none is begun")
    asked = parser.parse_args()
    if asked.study == "overhead":
        measure_overhead(asked.into, asked.threads)
    elif asked.study == "interrupted":
        measure_interrupted(asked.into)
    elif asked.study:
        fill(asked.study, asked.into, asked.seeds, asked.threads, asked.until)
    write_pages(asked.into)


if __name__ == "__main__":
    main()
