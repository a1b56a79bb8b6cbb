"""Perplexity of a real decoder without single weights: magnitude, Wanda and SparseGPT, and what each takes.

    python -m benchmarks.language [--calibration 64] [--test 16] [--jobs 1] [--out docs/benchmarks]

SmolLM2-135M-Instruct loses half, 60 % and 70 % of the weights of its 210 linear layers, and two of every
four; embedding, output layer and norms stay. Magnitudes are compared within each matrix, Wanda's scores
within each output, SparseGPT chooses in its sweep, as in the papers. Calibration reads the calibration
split of the editorials, perplexity is on the test split; nothing is tuned, so nothing is validated. Each
row runs in a process of its own on one thread: CPU seconds (user and system) and peak memory are those of
the whole process, with imports and loading, until the model is pruned. Writes ``language.json`` and
``language.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 512
"""Of a window."""

LAYERS = "*_proj"
METHODS = ("magnitude", "wanda", "sparsegpt")
SETTINGS: dict[str, dict[str, Any]] = {
    "60 %": {"sparsity": 0.6},
    "50 %": {"sparsity": 0.5},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": "2:4"},
}
SEED, RESAMPLES = 0, 10_000
"""Of the bootstrap."""


def windows(tokenizer: Any, texts: list[str], count: int) -> Any:
    """``[count, TOKENS]``: the first tokens of the texts, joined by empty lines.

    Raises:
        ValueError: the texts have fewer.
    """
    import torch

    found = tokenizer("\n\n".join(texts), verbose=False).input_ids
    if len(found) < count * TOKENS:
        raise ValueError(f"the texts have {len(found) // TOKENS} windows, not {count}")
    return torch.tensor(found[: count * TOKENS]).view(count, TOKENS)


def prune(model: Any, method: str, setting: str, calibration: Any) -> None:
    """Zero weights of the model's linear layers, in place.

    Args:
        model: a decoder of transformers.
        method: one of :data:`METHODS`.
        setting: a key of :data:`SETTINGS`.
        calibration: ``[windows, TOKENS]``, one batch each.
    """
    import prunekit as pk

    given = SETTINGS[setting]
    batches = [pk.Batch(args=(), kwargs={"input_ids": window}) for window in calibration.split(1)]
    body = model.model  # The output layer reads nothing that is pruned.
    if method == "sparsegpt":
        graph = pk.trace(body, kwargs={"input_ids": calibration[:2]})
        pk.reconstruct_weights(body, graph, batches, pk.Choice(**given), only=LAYERS, in_place=True)
        return
    scope = "row" if method == "wanda" and "sparsity" in given else None
    pk.mask_weights(
        body,
        **given,
        criterion=method,
        scope=scope,
        only=LAYERS,
        calibration=batches,
        in_place=True,
        fold=True,
    )


def losses(model: Any, test: Any) -> list[float]:
    """Mean negative log-likelihood of each window's tokens but the first."""
    import torch

    with torch.no_grad():
        return [
            float(torch.nn.functional.cross_entropy(model(window).logits[0, :-1], window[0, 1:]))
            for window in test.split(1)
        ]


def measure(method: str, setting: str, calibration: int, test: int) -> dict[str, Any]:
    """One row: what pruning took, and the losses afterwards."""
    import torch

    from benchmarks import assets

    torch.set_num_threads(1)
    model, tokenizer = vars(assets.load("smollm2-135m")).values()
    model.config.use_cache = False
    texts = assets.load("nyt-editorials")
    if method != "dense":
        prune(model, method, setting, windows(tokenizer, texts["calibration"], calibration))
    used = resource.getrusage(resource.RUSAGE_SELF)
    zeros = [int((layer.weight == 0).sum()) for layer in linear_layers(model)]
    weights = sum(layer.weight.numel() for layer in linear_layers(model))
    return {
        "method": method,
        "setting": setting,
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(peak_bytes() / 1e9, 3),
        "layers": len(zeros),
        "zeros": sum(zeros) / weights,
        "losses": losses(model, windows(tokenizer, texts["test"], test)),
    }


def linear_layers(model: Any) -> list[Any]:
    """What is pruned."""
    return [module for name, module in model.named_modules() if name.endswith("_proj")]


def peak_bytes() -> int:
    """The most resident memory so far, of this program alone, which ``ru_maxrss`` is not after exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def interval(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Perplexity of the first over that of the second and its 95 % interval, from windows in pairs."""
    differences = np.array(first) - np.array(second)
    draws = np.random.default_rng(SEED).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.exp(np.quantile(differences[draws].mean(1), (0.025, 0.975)))
    return float(np.exp(differences.mean())), float(low), float(high)


def table(rows: list[dict[str, Any]], asked: argparse.Namespace, load: float) -> str:
    """The rows as Markdown."""
    found = {(row["method"], row["setting"]): row for row in rows}
    dense = found.pop(("dense", ""))
    lines = [f"| dense | | {perplexity(dense):.1f} | | | {dense['cpu_s']:.0f} | {dense['peak_gb']:.2f} |"]
    for (method, setting), row in found.items():
        beside = ""
        if method == "wanda" and ("sparsegpt", setting) in found:
            beside = shown(interval(row["losses"], found["sparsegpt", setting]["losses"]))
        over = shown(interval(row["losses"], dense["losses"]))
        lines.append(
            f"| {method} | {setting} | {perplexity(row):,.1f} | {over} | {beside} | {row['cpu_s']:.0f} | "
            f"{row['peak_gb']:.2f} |"
        )
    missing = 1 + len(METHODS) * len(SETTINGS) - len(rows)
    if missing:
        lines.append(f"\n{missing} rows of this run are not there yet.")
    return HEAD.format(**vars(asked), tokens=asked.test * (TOKENS - 1), load=load) + "\n".join(lines) + "\n"


def perplexity(row: dict[str, Any]) -> float:
    """Of all tokens together: windows are equally long."""
    return float(np.exp(np.mean(row["losses"])))


def shown(found: tuple[float, float, float]) -> str:
    """A figure and its interval."""
    return "{:,.3g} ({:,.3g} to {:,.3g})".format(*found)


HEAD = """# Single weights of a real decoder

SmolLM2-135M-Instruct without a share of the weights of its 210 linear layers, or without two of every
four (`python -m benchmarks.language`; the environment is in `language.json`). Calibrated on {calibration}
windows of 512 tokens of the calibration editorials, evaluated on {test} windows of the test editorials,
{tokens:,} tokens predicted; no editorial is in both. Nothing is trained, and the output layer, tied to
the embedding, stays. Magnitudes are compared within each matrix, Wanda's scores within each output, on
the inputs of the dense model; SparseGPT goes layer by layer, each reading what the pruned layers before
it give.

In brackets 95 % intervals of a paired bootstrap over the {test} windows, 10,000 resamples, seed 0; they
say how much the texts matter, not other calibration data: that is one draw. The weights come dequantised
from 4 bits; some are exactly zero before anything is pruned (the dense row of `language.json` says how
many), and equal magnitudes are common, which ties by position decide.

CPU seconds and peak memory are those of the whole process on one thread, with imports and loading, until
the model is pruned; {load:.1f} processes wanted the cores when it began, and CPU seconds grow when cores
are shared.

| method | removed | perplexity | over dense | Wanda over SparseGPT | CPU s | peak, GB |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure every row in its own process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calibration", type=int, default=64, help="windows")
    parser.add_argument("--test", type=int, default=16, help="windows")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--part", nargs=2, help="measure METHOD SETTING and print it as JSON")
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(measure(*asked.part, asked.calibration, asked.test)))
        return
    from prunekit.measure import environment

    record: dict[str, Any] = {"environment": environment(threads=1), "seed": SEED, "resamples": RESAMPLES}
    record |= {"calibration_windows": asked.calibration, "test_windows": asked.test, "tokens": TOKENS}

    def row(part: tuple[str, str]) -> dict[str, Any]:
        sizes = ["--calibration", str(asked.calibration), "--test", str(asked.test)]
        command = [sys.executable, "-m", "benchmarks.language", *sizes, "--part", *part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        print(*part, f"{perplexity(found):.1f}", found["cpu_s"], found["peak_gb"], flush=True)
        return found

    parts = [("dense", ""), *((method, setting) for setting in SETTINGS for method in reversed(METHODS))]
    asked.out.mkdir(parents=True, exist_ok=True)
    record["rows"] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for found in pool.map(row, parts):
            record["rows"].append(found)
            (asked.out / "language.json").write_text(json.dumps(record, indent=1) + "\n")
            text = table(record["rows"], asked, record["environment"]["load_1m"])
            (asked.out / "language.md").write_text(text)


if __name__ == "__main__":
    main()
