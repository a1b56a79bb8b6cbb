"""The pages of docs/benchmarks/, one function per page, made from the ledgers alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.recovery import tables
from benchmarks.recovery.cells import Cell, Ledger, cell_of
from benchmarks.recovery.claims import KIND_NAMES
from benchmarks.recovery.results import PARENT, Results
from benchmarks.recovery.words import in_words, lost

SEEDS = (0, 1, 2)
"""What the design asks for."""

TEST_EXAMPLES = {"fashion": 10_000, "minilm": 1_590, "digits": 629}

INTERVALS = (
    "Accuracies are means over the seeds with their range, in percent. A difference is paired, in points,"
    " with two 95 % intervals: Student's over the seeds (n = {seeds}; other parents, other orders of the "
    "data) and the bootstrap over the test examples (n = {examples:,}) of the mean over the seeds. A "
    "verdict needs both intervals on the same side of its line; else it is NOT SEPARATED. No setting "
    "was chosen by the test split; the order in which cells were measured was changed while figures of "
    "earlier ones were in view. A seed is of the parent's weights and of every order of the data."
)

FASHION = """# Recovery on Fashion-MNIST

`python -m benchmarks.recovery --study fashion`; every row, its commit and the environment are in
`recovery_fashion.json`, and a run measures only the rows that are not there.
"""

FASHION_ABOUT = (
    "The network is the ResNet of twenty layers of He et al. (2016): widths 16, 32 and 64, 272,186 "
    "parameters. Its stem has stride 2, so that the stages see 14 x 14, 7 x 7 and 4 x 4 positions (8.5 "
    "million MACs) and a parent takes 2.3 CPU minutes on one core. Parents train for 6 epochs over 54,000"
    " pictures, at 0.1, 0.01 and 0.001 (half, a quarter, a quarter of the steps), batches of 128, no "
    "augmentation. Validation: 5,000 of the 60,000 training pictures.",
    "A budget is a share of the examples that the parent's training saw, in all cycles together. Recovery"
    " uses the defaults of a recipe (SGD, 0.01 falling along a cosine, 5 % warm-up) with the parent's "
    "batch size. MACs go as whole channels by L2 norm, the same share of every group; weights by "
    "magnitude, all tensors together, of all matrices and kernels. One-shot: cut, then train. Iterative: "
    "five cycles of cut and train along the cubic curve, each with a fifth of the budget and a "
    "learning-rate schedule of its own. Gradual: ten cuts along the cubic curve in the first two thirds "
    "of one run with one learning-rate schedule; the optimizer follows.",
    "Gradual runs end with their last weights, the others with the best by validation. Rows of the first "
    "commit were measured with the training loop and the masks of that time; a row of MACs measured with "
    "both came out the same for every picture, one of weights differed by 0.08 points (masked weights are "
    "computed in another way, and rounding differs).",
)

MINILM = """# Recovery of a sentence encoder

`python -m benchmarks.recovery --study minilm`; every row, its commit and the environment are in
`recovery_minilm.json`.
"""

MINILM_ABOUT = (
    "all-MiniLM-L6-v2 (6 layers of 12 heads, 384 wide, trained weights) with two logits on the mean over "
    "the tokens, fine-tuned to tell whether the mean rating of a film review's snippet is above zero: "
    "3,000 snippets for training, 500 for validation, all 1,590 of the test split, cut to 32 tokens. "
    "Snippets rated close to zero are among them. Parents train for 2 epochs with AdamW at 1e-4, then "
    "1e-5, batches of 32; embeddings of words and positions stay as they are. Matrix products round their"
    " operands to bfloat16.",
    "Gone are 4 of 12 heads of every layer or half of the feed-forward neurons (by `wanda`), or 3 of 6 "
    "layers (by `block_influence`), judged on 64 unlabelled snippets. Every recovery sees 40 % of the "
    "examples that the parent's training saw.",
)


def fashion(into: Path) -> str:
    """Ways, claims, budgets and distillation."""
    from benchmarks.recovery.fashion import design

    record = Ledger(into / "recovery_fashion.json").record()
    results = _results(record, "fashion")
    distilled = [
        (
            lost(cell),
            Cell(cell.kind, cell.sparsity, distilled=True),
            cell,
        )
        for kind in KIND_NAMES
        for cell in (Cell(kind, sparsity) for sparsity in (0.5, 0.7, 0.9))
        if results.of(Cell(kind, cell.sparsity, distilled=True))
    ]
    return "\n".join(
        [
            FASHION,
            _prose(*FASHION_ABOUT, _intervals(results)),
            _prose(
                f"{tables.parent_line(results)} Trained on for another 20 % they have "
                f"{tables.spread(results.figures(Cell('nothing', 0.0)))}: training always leaves the best "
                "weights by validation, those it began with among them."
            ),
            "## What common wisdom says\n",
            _prose(
                "Margins and comparisons were fixed when 13 of the cells had been measured, and stayed. A "
                "claim is confirmed where every comparison confirms it, and refuted where one refutes it."
            ),
            tables.claims(results),
            "## One-shot, iterative, gradual\n\nTest accuracy at a budget of 20 %.\n",
            tables.ways(results),
            "## Budgets\n",
            tables.budgets(results),
            "## Distillation\n",
            tables.pairs(results, distilled, ("with the parent's logits", "labels alone")),
            "## Where this comes from\n",
            tables.origin(record),
            tables.missing(design(SEEDS), record["rows"]),
        ]
    )


def minilm(into: Path) -> str:
    """Each part of the encoder, with and without distillation."""
    from benchmarks.recovery.minilm import BUDGET, LOST, design

    record = Ledger(into / "recovery_minilm.json").record()
    results = _results(record, "minilm")
    plain = [Cell(kind, share, budget=BUDGET) for kind, share in LOST.items()]
    plain.append(replace(plain[-1], rates="peak"))
    beside = [(in_words(cell), cell, PARENT) for cell in plain]
    taught = [(in_words(cell), replace(cell, distilled=True), cell) for cell in plain]
    return "\n".join(
        [
            MINILM,
            _prose(*MINILM_ABOUT, _intervals(results), tables.parent_line(results)),
            "## Against the parent\n",
            tables.pairs(results, beside, ("recovered", "parent")),
            "## With and without distillation\n",
            tables.pairs(results, taught, ("with the parent's logits", "labels alone")),
            "## Every cell\n",
            _prose(
                "A recovery leaves the best weights by validation, those it began with among them: where it "
                "did not help there, the figures are those of the cut model."
            ),
            tables.cells(results),
            "## Where this comes from\n",
            tables.origin(record),
            tables.missing(design(SEEDS), record["rows"]),
        ]
    )


def defaults(into: Path) -> str:
    """Whether the defaults beat plain fine-tuning, for every study that has both."""
    parts = [DEFAULTS]
    for study, title in (("digits", "Digits"), ("minilm", "Sentence encoder"), ("fashion", "Fashion-MNIST")):
        path = into / f"recovery_{study}.json"
        if not path.exists():
            continue
        results = _results(Ledger(path).record(), study)
        plain = dict.fromkeys(_unseeded(row) for row in results.rows if row["rates"] == "last")
        named = {rates: _against(plain, rates, results) for rates in ("defaults", "middle", "earlier", "sgd")}
        parts += [f"## {title} ({TEST_EXAMPLES[study]:,} test examples)\n"]
        parts += [tables.pairs(results, named["defaults"], ("defaults", "plain"))]
        if named["middle"]:
            parts += [tables.pairs(results, named["middle"], ("three tenths of the peak", "plain"))]
        if named["sgd"]:
            parts += [tables.pairs(results, named["sgd"], ("SGD at 0.01", "plain"))]
        shown = ["defaults", "last", "middle", "peak", *(name for name in ("earlier", "sgd") if named[name])]
        parts += ["Accuracy on validation:\n", tables.rates(results, plain, shown, "validation")]
    return "\n".join(parts)


def _against(plain: Iterable[Cell], rates: str, results: Results) -> list[tuple[str, Cell, Cell]]:
    """Cells under other rates beside those under plain fine-tuning, where both are measured."""
    pairs = [(lost(cell), replace(cell, rates=rates), cell) for cell in plain]
    return [pair for pair in pairs if results.of(pair[1])]


DEFAULTS = """# The defaults against plain fine-tuning

Test accuracy after the same budget (20 % of the parent's training, for the encoder 40 %), the same seeds
and batch size. Defaults: what a recipe without a word about it does ([the
rule](../recovery.md#optimizer-and-learning-rate)). SGD trained the first and the last network: SGD at 0.01
with 5 % warm-up and a cosine. AdamW trained the encoder: AdamW at its highest rate along a cosine after
10 % warm-up where layers went, which are the settings of `peak`; at a constant tenth of it where heads or
neurons went, which is plain fine-tuning after 5 % warm-up. This rule was chosen on validation data, by
people who had seen the test figures of the other columns, those of an earlier rule (`earlier`: 5 % warm-up,
another weight decay, the highest rate less often) among them. Plain: the parent's optimizer at the last
learning rate of its training (`last`), constant: a hundredth of its peak, for the encoder a tenth. `middle`
and `peak`: the parent's optimizer at three tenths of its highest learning rate, or at that rate, along a
cosine. `sgd`: SGD at 0.01 whatever trained the parent. Intervals are those of [the Fashion-MNIST
page](recovery_fashion.md).
"""


def overhead(into: Path) -> str:
    """How long a step of a pruned model takes, beside a fresh one of its size."""
    record = json.loads((into / "recovery_overhead.json").read_text())
    rows = [
        (
            row["name"],
            f"{row['parameters']:,}",
            f"{row['pruned_ms']:.1f}",
            f"{row['fresh_ms']:.1f}",
            f"{row['times']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})",
        )
        for row in record["rows"]
    ]
    head = ["pruned", "parameters", "pruned, ms", "fresh, ms", "times as long"]
    machine = record["environment"]
    return "\n".join(
        [
            OVERHEAD,
            tables.table(head, rows),
            _prose(
                f"Commit `{record['commit']}`, {record['date']}; {machine['cpu']['model']}, "
                f"{machine['threads']} thread, torch {machine['packages']['torch']}."
            ),
        ]
    )


OVERHEAD = """# A training step after structural removal

`python -m benchmarks.recovery --study overhead`. CPU time of a step (forward, loss, backward, SGD) of a model
that `pk.remove` gave, and of one that its constructors gave in the same sizes; interleaved in pairs whose
order changes, the median of the paired quotients with its 95 % bootstrap interval. The last row is two fresh
networks.
"""


def interrupted(into: Path) -> str:
    """What a kill costs, and how equal the runs of other numbers of processes are."""
    record = json.loads((into / "recovery_interrupted.json").read_text())
    killed, machine = record["killed"], record["environment"]
    went_on = ", ".join(map(str, killed["went_on_after_steps"]))
    rows = [
        (
            {"whole": "DDP", "sharded": "FSDP2"}[row["form"]],
            _happened(row),
            "-" if row["steps_lost"] is None else f"{row['went_on_after_step']} ({row['steps_lost']})",
            {True: "yes", False: "NO"}[row["ranks_equal"]] if row["processes"] > 1 else "-",
            f"{row['difference']:.1e}",
        )
        for row in record["rows"]
    ]
    head = ["two processes", "what happened", "went on after step (steps lost)", "ranks equal", "difference"]
    return "\n".join(
        [
            INTERRUPTED,
            "## One process, killed again and again\n",
            _prose(
                f"{killed['steps']} steps with dropout and a moving average, a checkpoint after each. "
                f"{killed['kills']} kills, each up to 0.1 s after a step that was drawn by lot; "
                f"{killed['while_writing']} of them hit while another was being written. It went on after "
                f"steps {went_on}. Last weights and log are "
                f"{'equal to the last bit' if killed['equal'] else 'NOT EQUAL'} to those of the "
                "uninterrupted run."
            ),
            "## Two processes against one\n",
            SEVERAL,
            tables.table(head, rows),
            _prose(
                f"Commit `{record['commit']}`, {record['date']}; {machine['cpu']['model']}, "
                f"{machine['threads']} thread, torch {machine['packages']['torch']}."
            ),
        ]
    )


def _happened(row: dict[str, Any]) -> str:
    if row["event"] == "killed":
        return f"rank {row['rank']} killed, the other ended with {row['error_of_the_other']}; launched again"
    return "nothing" if row["event"] == "none" else f"all stopped; gone on with {row['processes']}"


INTERRUPTED = """# Training that is stopped, killed and gone on with

`python -m benchmarks.recovery --study interrupted`. A network of 769 parameters (8 -> 64 -> 1, layer norm),
AdamW, gradients accumulated over two parts and clipped, a moving average of the weights. It is validated on
its training examples, so that the last weights are the best, which is what training leaves. Kills are
SIGKILL. Processes run on one machine and talk through gloo.
"""

SEVERAL = """30 steps without dropout, of which each process would draw its own; a checkpoint after
every third step, the interruption after step 11. Ranks equal: weights and log, to the last bit. Difference:
of the weights from the uninterrupted run of one process, `max |a - b| / max |b|` of each tensor, the largest
of them. Sums of gradients over parts of a step are rounded in another order, in float32.
"""

PAGES: dict[str, Callable[[Path], str]] = {
    "fashion": fashion,
    "minilm": minilm,
    "defaults": defaults,
    "overhead": overhead,
    "interrupted": interrupted,
}
"""Every page by the end of its name, ``recovery_<name>.md``."""

NEEDS = {name: name for name in PAGES} | {"defaults": "digits"}
"""Page -> the JSON file without which it is not made."""


def write_pages(into: Path) -> None:
    """Make every page whose figures are there."""
    for name, page in PAGES.items():
        if (into / f"recovery_{NEEDS[name]}.json").exists():
            (into / f"recovery_{name}.md").write_text(page(into))


def _results(record: dict[str, Any], study: str) -> Results:
    return Results(tuple(record["rows"]), TEST_EXAMPLES[study])


def _seeds(results: Results) -> list[int]:
    return sorted({row["seed"] for row in results.rows})


def _intervals(results: Results) -> str:
    return INTERVALS.format(seeds=len(_seeds(results)), examples=results.examples)


def _unseeded(row: dict[str, Any]) -> Cell:
    return replace(cell_of(row), seed=0)


def _prose(*paragraphs: str) -> str:
    return "\n\n".join(fill(text, width=116) for text in paragraphs) + "\n"
