"""How long tracing and finding groups takes as models grow, and how much memory.

    python benchmarks/scale.py [--part NAME]

Each model lies on the meta device and runs in a process of its own, so that its peak memory is its own.
Writes ``docs/benchmarks/scale.json`` and ``scale.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MODELS: dict[str, tuple[str, dict, tuple[int, ...]]] = {
    "ResNet-50": ("ResNetForImageClassification", {}, (2, 3, 224, 224)),
    "BERT-base": ("BertForSequenceClassification", {}, (2, 128)),
    **{
        f"Llama-7B shape, {layers} layers": (
            "LlamaForCausalLM",
            {**LLAMA, "num_hidden_layers": layers},
            (2, 128),
        )
        for layers in (4, 8, 16, 32)
    },
}
"""Name -> transformers class, configuration, shape of the input."""


def measure(name: str) -> dict[str, float]:
    """Trace one model and find its groups."""
    import torch
    import transformers

    import prunekit as pk

    kind, fields, shape = MODELS[name]
    cls = getattr(transformers, kind)
    with torch.device("meta"):
        model = cls(cls.config_class(**fields)).eval()
    images = len(shape) == 4
    example = {
        "pixel_values" if images else "input_ids": torch.zeros(
            shape, dtype=torch.float32 if images else torch.long, device="meta"
        )
    }
    started = time.perf_counter()
    graph = pk.trace(model, kwargs=example)
    traced = time.perf_counter()
    groups = pk.find_groups(graph)
    found = time.perf_counter()
    return {
        "parameters": groups.cost().params,
        "operators": len(graph.nodes),
        "groups": len(groups),
        "trace_s": round(traced - started, 2),
        "groups_s": round(found - traced, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    """Measure every model in its own process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=MODELS, help="measure this one and print it as JSON")
    part = parser.parse_args().part
    if part is not None:
        print(json.dumps(measure(part)))
        return
    from prunekit.measure import environment

    rows = {}
    for name in MODELS:
        command = [sys.executable, __file__, "--part", name]
        rows[name] = json.loads(
            subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1]
        )
        print(name, rows[name], flush=True)
    record = {"environment": environment(threads=1), "rows": rows}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "scale.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    (OUT / "scale.md").write_text(table(rows))


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown."""
    names = ("model", "parameters", "operators", "groups", "trace, s", "groups, s", "peak, GB")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
    lines = [
        f"| {name} | {row['parameters'] / 1e6:,.0f} M | {row['operators']:,} | {row['groups']} | "
        f"{row['trace_s']:.1f} | {row['groups_s']:.1f} | {row['peak_gb']:.1f} |\n"
        for name, row in rows.items()
    ]
    return (
        "# Tracing and finding groups\n\nOn the meta device, one process per model "
        "(`python benchmarks/scale.py`; the environment is in `scale.json`).\n\n" + head + "".join(lines)
    )


if __name__ == "__main__":
    main()
