"""A cell: one network, pruned in one way, recovered within one budget; and the ledger of those measured."""

from __future__ import annotations

import base64
import json
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.files import write_atomically

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "benchmarks"


@dataclass(frozen=True)
class Cell:
    """What is measured, by value: equal cells are one measurement.

    Attributes:
        kind: what goes: a key of the study's cuts, or ``nothing`` for the parent trained on.
        sparsity: the fraction of it that goes, in [0, 1).
        way: ``oneshot``, ``iterative`` or ``gradual``: a key of :data:`benchmarks.recovery.ways.WAYS`.
        budget: of the recovery, as a share of the examples that the parent's training saw.
        rates: how it trains: a key of :data:`benchmarks.recovery.subject.RATES`.
        distilled: whether the parent's logits are a target beside the labels.
        seed: of the parent, and of the recovery.
    """

    kind: str
    sparsity: float
    way: str = "oneshot"
    budget: float = 0.2
    rates: str = "defaults"
    distilled: bool = False
    seed: int = 0

    def over(self, seeds: Iterable[int]) -> Iterator[Cell]:
        """The same cell for every seed."""
        return (replace(self, seed=seed) for seed in seeds)


@dataclass(frozen=True)
class Ledger:
    """The file of a study's measured cells, in the order they were measured."""

    path: Path

    def record(self) -> dict[str, Any]:
        """The whole file; without one, a record without rows."""
        return json.loads(self.path.read_text()) if self.path.exists() else {"rows": []}

    def rows(self) -> list[dict[str, Any]]:
        """One per measured cell."""
        return self.record()["rows"]

    def missing(self, design: Iterable[Cell]) -> list[Cell]:
        """The cells of ``design`` that are not measured, once each, in its order."""
        measured = {cell_of(row) for row in self.rows()}
        return [cell for cell in dict.fromkeys(design) if cell not in measured]

    def add(self, cell: Cell, found: dict[str, Any], **about: Any) -> None:
        """Write the file with one more row, or the row again; ``about`` goes to the head of the file."""
        record = self.record()
        rows = [row for row in record["rows"] if cell_of(row) != cell]
        rows.append(asdict(cell) | found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record | about | {"rows": None}, indent=1)
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        write_atomically(
            self.path, text.replace('"rows": null', f'"rows": [\n  {lines}\n ]').encode() + b"\n"
        )


def cell_of(row: dict[str, Any]) -> Cell:
    """The cell that a row is of."""
    return Cell(**{field.name: row[field.name] for field in fields(Cell)})


def commit() -> str:
    """The commit of the sources, with ``-dirty`` where they differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head}-dirty" if _git("status", "--porcelain", "--", "src", "benchmarks") else head


def packed(right: np.ndarray) -> str:
    """``[n]`` bool as text, short where nearly all are true."""
    return base64.b85encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The ``[count]`` bool that :func:`packed` made text of."""
    bits = np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
