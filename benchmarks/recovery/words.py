"""How cells are called in tables."""

from __future__ import annotations

from benchmarks.recovery.cells import Cell

WAY_NAMES = {"oneshot": "one-shot", "iterative": "iterative", "gradual": "gradual"}

LOST = {
    ("heads", 0.35): "4 of 12 heads",
    ("ffn", 0.5): "half of the neurons",
    ("layers", 0.5): "3 of 6 layers",
}
"""Kind and sparsity -> how many went, where whole units are counted."""

RATE_NAMES = {
    "earlier": "the earlier defaults",
    "sgd": "SGD at 0.01",
    "last": "plain fine-tuning",
    "peak": "the parent's optimizer and highest rate",
    "middle": "the parent's optimizer and three tenths of its highest rate",
}


def lost(cell: Cell) -> str:
    """What went."""
    if cell.kind == "nothing":
        return "nothing"
    kind = {"macs": "MACs"}.get(cell.kind, cell.kind)
    return LOST.get((cell.kind, cell.sparsity), f"{cell.sparsity:.0%} of {kind}")


def in_words(cell: Cell) -> str:
    """What tells this cell from others of its study, but for its seed."""
    parts = [lost(cell), WAY_NAMES[cell.way], f"budget {cell.budget:.0%}"]
    if cell.rates in RATE_NAMES:
        parts.append(RATE_NAMES[cell.rates])
    return ", ".join(parts + ["with the parent's logits"] * cell.distilled)
