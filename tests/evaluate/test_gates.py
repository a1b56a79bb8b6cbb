import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from prunekit.errors import StorageError, UsageError
from prunekit.evaluate import (
    GATES,
    Bytes,
    Facts,
    MaxLatencyMs,
    MaxMemoryBytes,
    MaxQualityDrop,
    MaxSizeBytes,
    MaxSliceDrop,
    MinSizeReduction,
    MinSpeedup,
    Speedup,
    compare,
    facts_from_results,
    judge,
    make_gate,
)

N = 600


@pytest.fixture
def facts(make_table) -> Facts:
    """60 of 600 lost, all among the last 100, which is class 1; a slice of 10 examples without a change."""
    pruned = np.ones(N, bool)
    pruned[-60:] = False
    label = (np.arange(N) >= 500).astype(int)
    tables = (make_table(right, label=label, tiny=np.arange(N) < 10) for right in (np.ones(N, bool), pruned))
    return Facts(
        comparison=compare(*tables),
        speedup=Speedup(median=2.5, low=2.4, high=2.6, confidence=0.95, pairs=200),
        latency_ms={"p50": 1.5, "p90": 2.0, "p99": 4.0},
        size=Bytes(dense=1_000_000, pruned=400_000),
        memory=Bytes(dense=9_000_000, pruned=5_000_000),
    )


JUDGED = [
    (MaxQualityDrop(0.15), True, "stages/evaluate/result.json#overall.low"),
    (MaxQualityDrop(0.11), False, "stages/evaluate/result.json#overall.low"),
    (MaxQualityDrop(0.11, by="point"), True, "stages/evaluate/result.json#overall.change"),
    (MaxQualityDrop(0.09, by="point"), False, "stages/evaluate/result.json#overall.change"),
    (MaxSliceDrop(0.75), True, "stages/evaluate/result.json#slices.1.low"),
    (MaxSliceDrop(0.62), False, "stages/evaluate/result.json#slices.1.low"),
    (MaxSliceDrop(0.60, by="point"), True, "stages/evaluate/result.json#slices.1.change"),
    (MaxSliceDrop(0.59, by="point"), False, "stages/evaluate/result.json#slices.1.change"),
    (MinSpeedup(2.4), True, "stages/validate/result.json#latency.speedup.low"),
    (MinSpeedup(2.45), False, "stages/validate/result.json#latency.speedup.low"),
    (MinSpeedup(2.45, by="point"), True, "stages/validate/result.json#latency.speedup.median"),
    (MaxLatencyMs(1.5), True, "stages/validate/result.json#latency.pruned.p50_ms"),
    (MaxLatencyMs(1.5, percentile=90), False, "stages/validate/result.json#latency.pruned.p90_ms"),
    (MaxLatencyMs(4.0, percentile=99), True, "stages/validate/result.json#latency.pruned.p99_ms"),
    (MaxSizeBytes(400_000), True, "stages/validate/result.json#size.pruned_bytes"),
    (MaxSizeBytes(399_999), False, "stages/validate/result.json#size.pruned_bytes"),
    (MinSizeReduction(0.6), True, "stages/validate/result.json#size"),
    (MinSizeReduction(0.61), False, "stages/validate/result.json#size"),
    (MaxMemoryBytes(5_000_000), True, "stages/validate/result.json#memory.pruned_bytes"),
    (MaxMemoryBytes(4_999_999), False, "stages/validate/result.json#memory.pruned_bytes"),
]


@pytest.mark.parametrize(("gate", "passed", "evidence"), JUDGED, ids=[str(row[0]) for row in JUDGED])
def test_each_gate_on_both_sides_of_its_limit(facts, gate, passed, evidence):
    (result,) = judge([gate], facts)
    assert result.passed is passed
    assert result.limit == gate.limit
    assert result.evidence == evidence
    assert GATES[result.name].make is type(gate)


def test_every_kind_of_gate_is_judged_above():
    assert {type(gate) for gate, *_ in JUDGED} == {kind.make for kind in GATES.values()}


@pytest.mark.parametrize(("gate", "passed", "evidence"), JUDGED, ids=[str(row[0]) for row in JUDGED])
def test_evidence_leads_to_the_observed_number(facts, gate, passed, evidence):
    """Oracle: the run directory's own JSON, followed key by key."""
    files = {"evaluate": _plain(asdict(facts.comparison)), "validate": _validation(facts)}
    value = files[evidence.split("/")[1]]
    for key in evidence.split("#")[1].split("."):
        value = value[int(key) if key.isdigit() else key]
    (result,) = judge([gate], facts)
    if isinstance(value, dict):
        value = 1 - value["pruned_bytes"] / value["dense_bytes"]
    sign = -1 if "Drop" in type(gate).__name__ else 1
    assert result.observed == sign * value


def test_quality_by_interval_takes_the_pessimistic_end(facts):
    by_interval, by_point = judge([MaxQualityDrop(0.1), MaxQualityDrop(0.1, by="point")], facts)
    assert by_interval.observed == -facts.comparison.overall.low > 0.1
    assert by_point.observed == pytest.approx(0.1)
    assert by_interval.unit == by_point.unit == "fraction"


@pytest.mark.parametrize("gate", [kind.make(limit=0.5) for kind in GATES.values()], ids=list(GATES))
def test_a_missing_fact_fails(gate):
    (result,) = judge([gate], Facts())
    assert result.passed is False
    assert result.observed is None
    assert result.reason.endswith("so this gate cannot pass.")


def test_a_percentile_that_was_not_kept_fails(facts):
    (result,) = judge([MaxLatencyMs(9, percentile=99)], replace(facts, latency_ms={"p50": 1.0}))
    assert (result.passed, result.observed) == (False, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_never_passes(facts, bad):
    broken = replace(
        facts,
        comparison=replace(
            facts.comparison,
            overall=replace(facts.comparison.overall, low=bad),
            slices=tuple(replace(part, low=bad) for part in facts.comparison.slices),
        ),
        speedup=replace(facts.speedup, low=bad),
        latency_ms={"p50": bad},
    )
    results = judge([MaxQualityDrop(1), MaxSliceDrop(1), MinSpeedup(0.1), MaxLatencyMs(9)], broken)
    assert [(result.passed, result.observed) for result in results] == [(False, None)] * 4


def test_reasons_are_sentences_with_the_numbers(facts):
    gates = [MaxQualityDrop(0.01, by="point"), MinSpeedup(2), MaxLatencyMs(3, 99), MinSizeReduction(0.5)]
    reasons = [result.reason for result in judge([*gates, MaxSliceDrop(0.6, by="point")], facts)]
    assert reasons == [
        "Overall, correct changed by -10 points (60 lost, 0 gained); "
        "it is beyond the drop of 1 points allowed.",
        "The median speed-up over 200 pairs is 2.5x; "
        "the low end of its 95% interval, 2.4x, reaches the 2x asked for.",
        "The p99 latency of the pruned model is 4 ms, above the limit of 3 ms.",
        "The exported file went from 1,000,000 to 400,000 bytes, a reduction of 60.00%, "
        "which reaches the 50.00% asked for.",
        "class:1 (n = 100), the worst of 3 slices, changed by -60 points (60 lost, 0 gained); "
        "it is within the drop of 60 points allowed.",
    ]


def test_a_small_slice_is_judged_unless_the_gate_says_otherwise(facts):
    """Only the slice of 10 unchanged examples is left to be the worst: its interval decides."""
    comparison = replace(facts.comparison, slices=(facts.comparison.slices[0], facts.comparison.slices[2]))
    facts = replace(facts, comparison=comparison)
    judged, passed_over = judge([MaxSliceDrop(0.05), MaxSliceDrop(0.05, min_examples=30)], facts)
    assert not judged.passed
    assert "slice:tiny (n = 10, too few to say much), the worst of 2 slices" in judged.reason
    assert passed_over.passed
    assert "the worst of 1 slices (1 with fewer than 30 examples not judged)" in passed_over.reason


def test_an_empty_slice_fails_unless_the_gate_says_otherwise(facts):
    facts = replace(facts, comparison=replace(facts.comparison, empty_slices=("slice:night",)))
    strict, lenient, impossible = judge(
        [MaxSliceDrop(1), MaxSliceDrop(1, min_examples=1), MaxSliceDrop(1, min_examples=N + 1)], facts
    )
    assert not strict.passed
    assert "slice:night" in strict.reason
    assert lenient.passed
    assert not impossible.passed


def test_results_are_plain_json(facts):
    results = [asdict(result) for result in judge([row[0] for row in JUDGED], facts)]
    assert json.loads(json.dumps(results, allow_nan=False)) == results


@pytest.mark.parametrize("kind", GATES)
def test_gates_are_made_by_name(kind):
    assert make_gate(kind, limit=0.5) == GATES[kind].make(limit=0.5)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("max_flops", {"limit": 1}, "no gate 'max_flops'. Expected one of max_quality_drop"),
        ("min_speedup", {}, "min_speedup: The settings"),
        ("min_speedup", {"limit": 2, "percentile": 50}, "at most limit, by"),
        ("min_speedup", {"limit": 0}, "given 0. Expected a speed-up above 0"),
        ("min_speedup", {"limit": "2"}, "given '2'"),
        ("min_speedup", {"limit": True}, "given True"),
        ("max_quality_drop", {"limit": float("nan")}, "given nan"),
        ("max_quality_drop", {"limit": -0.1}, "given -0.1"),
        ("max_quality_drop", {"limit": 0.1, "by": "median"}, "by='median'"),
        ("max_slice_drop", {"limit": 0.1, "min_examples": -1}, "min_examples of 0 or more"),
        (
            "max_latency_ms",
            {"limit": 5, "percentile": 95},
            r"given 95. Expected a percentile out of \(50, 90, 99\)",
        ),
        ("min_size_reduction", {"limit": 1.0}, r"a fraction in \[0, 1\)"),
        ("max_size_bytes", {"limit": 0}, "bytes above 0"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(kind, settings, message):
    with pytest.raises(UsageError, match=message):
        make_gate(kind, **settings)


def test_what_is_not_a_gate_is_refused(facts):
    with pytest.raises(UsageError, match="is not a gate"):
        judge(["min_speedup"], facts)


def test_facts_come_from_the_results_of_the_stages(facts):
    evaluation = json.loads(json.dumps(asdict(facts.comparison)))
    assert facts_from_results(evaluation, _validation(facts)) == facts
    assert facts_from_results(None, None) == Facts()
    assert facts_from_results(
        None, {"latency": None, "size": {"dense_bytes": 2, "pruned_bytes": 1}}
    ) == Facts(size=Bytes(2, 1))


@pytest.mark.parametrize(
    "damaged", [{"size": {}}, {"latency": {"speedup": {"median": "fast"}}}, {"memory": 5}]
)
def test_damaged_results_are_a_storage_error(damaged):
    with pytest.raises(StorageError, match="damaged or of another version"):
        facts_from_results(None, damaged)


def _plain(value):
    return json.loads(json.dumps(value))


def _validation(facts: Facts) -> dict:
    """What the validate stage writes, as the layout of the run directory says."""
    return {
        "latency": {
            "batch": 1,
            "pruned": {f"{name}_ms": value for name, value in facts.latency_ms.items()},
            "speedup": asdict(facts.speedup),
        },
        "size": {f"{name}_bytes": value for name, value in asdict(facts.size).items()},
        "memory": {f"{name}_bytes": value for name, value in asdict(facts.memory).items()},
    }
