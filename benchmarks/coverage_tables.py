"""The Markdown that ``benchmarks.coverage`` writes from its records."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

Record = dict[str, Any]

STAGES = ("traced", "groups", "pruned", "verified", "same_outputs", "trained", "reloaded", "exported")
MEANINGFUL = 0.05
"""Share of the parameters that has to go for a row to count as pruned, here and for the peer."""

OF_EVERY_MODEL = {"input", "output", "selection"}
"""What freezes an axis by definition, not for want of a rule."""


def correct(record: Record) -> bool:
    """Pruned, proved, with unchanged outputs, trains as its parent does, reloads, lost enough to matter."""
    stages = ("pruned", "verified", "same_outputs", "reloaded")
    trained = record.get("trained") or record.get("parent_trained") is False
    return all(record.get(stage) for stage in stages) and trained and record["removed"] > MEANINGFUL


def brief(record: Record) -> str:
    """One line for a terminal."""
    marks = " ".join(f"{stage}={_mark(record.get(stage))}" for stage in STAGES)
    line = f"{record['name']:24} {marks} {record.get('form', '')} {record.get('seconds', 0):.0f} s"
    if "peer" in record:
        line += f" | peer={_mark(record['peer'].get('correct'))}"
    return line + (f" | {record['error'][:160]}" if record.get("error") else "")


def pages(whole: dict[str, Any]) -> str:
    """The whole page."""
    records = whole["rows"]
    parts = [
        "# Architectures that prunekit prunes",
        _environment(whole),
        "## Sums",
        _sums(records),
        "## Rows that were not pruned",
        _failures(records),
        "## What is frozen, by frequency",
        _frozen(records),
        "## Every row",
        _every_row(records),
    ]
    if any("peer" in record for record in records):
        parts += ["## Torch-Pruning on the rows it does not prune correctly", _peer_failures(records)]
    return "\n\n".join(parts) + "\n"


def _environment(whole: dict[str, Any]) -> str:
    found = whole["environment"]
    packages = {**found["packages"], **whole["versions"]}
    commits = ", ".join(dict.fromkeys(f"`{record['commit']}`" for record in whole["rows"]))
    named = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    settings = whole["settings"]
    return (
        f"On {found['date'][:10]}, commit {commits} on {found['cpu']['model']}, one thread, "
        f"Python {found['python']}, {named}. Every row ran in a process of its own with "
        f"{settings['seconds']} s of CPU time and {settings['memory_bytes'] >> 30} GiB of memory. Half "
        "of the units of every prunable group were removed by `pk.prune`'s defaults, without a word about "
        "the model. Written by `python -m benchmarks.coverage`."
    )


def _sums(records: list[Record]) -> str:
    families = list(dict.fromkeys(record["family"] for record in records))
    peer = any("peer" in record for record in records)
    header = ["family", "rows", *STAGES, "own class", "correct", *(["Torch-Pruning correct"] if peer else [])]
    rows = []
    for family in (*families, "all"):
        mine = [record for record in records if family in (record["family"], "all")]
        own = sum(record.get("form") == "own class" for record in mine)
        cells = [str(sum(bool(record.get(stage)) for record in mine)) for stage in STAGES]
        row = [family, str(len(mine)), *cells, str(own), str(sum(map(correct, mine)))]
        if peer:
            row.append(str(sum(bool(record.get("peer", {}).get("correct")) for record in mine)))
        rows.append(row)
    traced = [record for record in records if record.get("traced")]
    share = sum(map(correct, traced)) / max(1, len(traced))
    reach = [record["reachable"] for record in traced if "reachable" in record]
    note = (
        f"Of the {len(traced)} rows that torch.export traces, {share:.1%} were pruned correctly: proved, "
        "with outputs of the same shapes, trained a step (where the dense model does), reloaded, and at "
        f"least {MEANINGFUL:.0%} of the parameters gone. Median share of the parameters in tensors that a "
        f"group reaches: {_median(reach):.1%}. 'groups' counts rows in which at least one was found."
    )
    return _table(header, rows) + "\n\n" + note


def _failures(records: list[Record]) -> str:
    failed = [record for record in records if not correct(record)]
    if not failed:
        return "None."
    rows = [[record["name"], _stage_of(record), _said(record)] for record in failed]
    return _table(["row", "stage", "what was said"], rows)


def _stage_of(record: Record) -> str:
    if record.get("pruned"):
        failed = [
            name for name in ("verified", "same_outputs", "trained", "reloaded") if not record.get(name)
        ]
        return failed[0] if failed else "little removed"
    if record.get("traced") is False:
        return "trace (refused)"
    return f"{record.get('stage', '?')} ({'refused' if record.get('refused') else 'crashed'})"


def _said(record: Record) -> str:
    errors = [record[name] for name in record if name == "error" or name.endswith("_error")]
    texts = [str(error) for error in errors if isinstance(error, str)]
    return _cell(texts[0] if texts else f"{record.get('removed', 0):.1%} of the parameters removed")


def _frozen(records: list[Record]) -> str:
    rows: dict[tuple[str, str], list[Any]] = defaultdict(lambda: [set(), 0, 0])
    for record in records:
        for item in record.get("frozen", ()):
            entry = rows[item["operator"], re.sub(r"(?<!\w)'[^']*'", "'...'", item["reason"])]
            entry[0].add(record["name"])
            entry[1] += 1
            entry[2] += item["unreached_params"]
    ordered = sorted(rows.items(), key=lambda item: (item[0][0] in OF_EVERY_MODEL, -item[1][2], -item[1][1]))
    cells = [
        [f"`{operator}`", _cell(reason), str(len(names)), str(axes), str(params)]
        for (operator, reason), (names, axes, params) in ordered
    ]
    note = (
        "Parameters counts those in tensors that such an axis lies along and no prunable group touches; "
        "a tensor frozen along two axes counts at both."
    )
    return _table(["operator", "reason", "rows", "axes", "parameters"], cells) + "\n\n" + note


def _every_row(records: list[Record]) -> str:
    peer = any("peer" in record for record in records)
    header = ["row", "family", *STAGES, "form", "reachable", "removed", "s", "MiB"]
    rows = []
    for record in records:
        cells = [
            str(record.get(name, "-")) if name == "groups" else _mark(record.get(name)) for name in STAGES
        ]
        tail = [_percent(record.get("reachable")), _percent(record.get("removed"))]
        tail += [f"{record.get('seconds', 0):.0f}", f"{record.get('peak_rss_bytes', 0) >> 20}"]
        form = _form(record)
        rows.append([record["name"], record["family"], *cells, form, *tail])
        if peer:
            rows[-1].append(_mark(record.get("peer", {}).get("correct")))
    reasons = Counter(
        re.sub(r"^\w+ ", "", re.sub(r"\d+", "#", record["form_reason"]))
        for record in records
        if record.get("form") == "graph module"
    )
    why = _table(
        ["why the class is not kept", "rows"],
        [[_cell(reason), str(count)] for reason, count in reasons.most_common()],
    )
    return _table([*header, *(["Torch-Pruning"] if peer else [])], rows) + "\n\n" + why


def _form(record: Record) -> str:
    return {"own class": "own", "graph module": "graph"}.get(record.get("form", ""), "")


def _peer_failures(records: list[Record]) -> str:
    rows = [
        [record["name"], str(record["peer"].get("stage", "?")), _cell(str(record["peer"].get("error", "")))]
        for record in records
        if "peer" in record and not record["peer"].get("correct")
    ]
    return _table(["row", "stage", "what was said"], rows)


def _mark(value: object) -> str:
    return "-" if value is None else "yes" if value else "**no**"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:220]


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
