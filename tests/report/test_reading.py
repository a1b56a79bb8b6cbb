from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from tests.report.pages import resolve

from prunekit.errors import RunDirectoryError
from prunekit.report.reading import Entry, read_run


def test_an_entry_knows_where_it_stands():
    entry = Entry({"a": [{"b c": 1}], "layer1.0:0": {"x": 2}}, "file.json")
    assert entry.at("a", 0, "b c") == Entry(1, 'file.json#a.0["b c"]')
    assert entry.at("layer1.0:0", "x") == Entry(2, 'file.json#["layer1.0:0"].x')
    assert entry.at("none", "of", 3, "this") == Entry(None, "file.json#none.of.3.this")
    assert entry.first("nothing", "a").value == [{"b c": 1}]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((value, value) for value in (3, 0.5, -2)),
        *((value, None) for value in (True, "3", None, [1], float("nan"), float("inf"), 10**400, 1e300)),
    ],
)
def test_a_number_is_a_finite_number(value, number):
    assert Entry(value, "x").number == number


def test_every_source_leads_back_to_its_value(finished):
    run = read_run(finished["hostile"])
    widths = run.cycles[-1].plan.at("widths")
    pairs = [(entry.at(0).source, entry.at(0).value) for _, entry in widths.items()]
    assert len(pairs) == 80
    assert all(resolve(finished["hostile"], source) == value for source, value in pairs)


@pytest.mark.parametrize("content", [None, "", "[]", "3", "{", '{"name": "\udcff"}'])
def test_what_is_no_run_directory_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(RunDirectoryError, match="Expected a run directory") as caught:
        read_run(tmp_path)
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "run.json"])
def test_a_path_that_is_no_directory_is_refused(run_dir, place):
    with pytest.raises(RunDirectoryError, match="no directory of this name"):
        read_run(run_dir / place)


def test_stages_come_in_the_order_of_the_workflow(finished):
    names = list(read_run(finished["accepted"]).stages)
    cycles = [f"cycle-0{i}/{part}" for i in (1, 2, 3) for part in ("score", "plan", "prune", "recover")]
    assert names == ["baseline", *cycles, "export", "validate", "evaluate", "gate"]


def test_unfinished_and_own_directories_are_not_read(run_dir):
    for name in (".validate.partial", "report", "cycle-01/.prune.old"):
        directory = run_dir / "stages" / name
        directory.mkdir()
        (directory / "result.json").write_text("{}")
    assert list(read_run(run_dir).results) == list(read_run(run_dir).stages)
    assert read_run(run_dir).problems == ()


def test_damaged_files_are_named_and_count_as_missing(run_dir):
    (run_dir / "stages/validate/result.json").write_bytes(b"{\xff")
    (run_dir / "stages/validate/latency.parquet").write_bytes(b"PAR1 not really")
    run = read_run(run_dir)
    assert not run.result("validate").known
    assert run.latency is None
    assert {problem.split()[0] for problem in run.problems} == {
        "stages/validate/result.json",
        "stages/validate/latency.parquet",
    }


def test_a_result_that_was_edited_is_named(run_dir):
    path = run_dir / "stages/gate/result.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "accepted": True, "note": "trust me"}))
    assert read_run(run_dir).problems == (
        "stages/gate/result.json has changed since its stage wrote it: its digest does not fit.",
    )


def test_raw_times_that_are_not_finite_are_left_out_as_pairs(run_dir):
    (run_dir / "stages/validate/stage.json").unlink()
    path = run_dir / "stages/validate/latency.parquet"
    pd.DataFrame({"dense_ms": [1.0, np.nan, 3.0], "pruned_ms": [1.0, 2.0, np.inf]}).to_parquet(path)
    run = read_run(run_dir)
    assert run.latency is not None
    assert run.latency.dense_ms.tolist() == [1.0]
    assert run.problems == ("stages/validate/latency.parquet holds 2 pairs that are not finite; left out.",)
