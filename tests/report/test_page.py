from __future__ import annotations

import copy
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from tests.report.pages import Page, resolve

from prunekit.errors import RunDirectoryError, StorageError
from prunekit.report import write_report
from prunekit.report.write import render

RUNS = ("accepted", "refused", "hostile")
OURS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "aside",
        "section",
        "nav",
    ),
    *("h1", "h2", "h3", "p", "a", "br", "strong", "span", "code", "pre", "data", "details", "summary"),
    *("ul", "li", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "line", "polyline", "circle"),
}
JUNK = (None, "x", "", [], {}, -1, 0, 1e308, -1e308, float("nan"), float("inf"), True, 10**30, [[]], {"a": 1})


@pytest.fixture(scope="session")
def pages(finished) -> dict[str, str]:
    return {name: render(path) for name, path in finished.items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_page_needs_nothing_else(pages, name):
    html, page = pages[name], Page(pages[name])
    assert {tag for tag, _ in page.tags} <= OURS - ({"aside"} if 'class="problems"' not in html else set())
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert not {"src", "srcset", "action", "xlink:href", "background"} & {
        key for _, a in page.tags for key in a
    }
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face", html)
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert len(html) < 300_000


@pytest.mark.parametrize("name", RUNS)
def test_every_number_is_the_one_its_source_names(pages, finished, name):
    numbers = Page(pages[name]).numbers
    recorded = [number for number in numbers if not re.search(r" · (from|number of)", number[1])]
    assert len(recorded) > 200
    for raw, title, text in recorded:
        source = title.split(" · ", 1)[1]
        assert str(resolve(finished[name], source)) == raw, source
        assert re.search(r"\d", text), source


def test_every_worked_out_number_names_sources_that_exist(pages, finished):
    for raw, title, _ in Page(pages["accepted"]).numbers:
        if " · from " in title and "*" not in title:
            sources = title.split(" · from ")[1].split(" and ")
            assert [resolve(finished["accepted"], source) for source in sources], raw


def test_links_lead_to_headings(pages):
    page = Page(pages["accepted"])
    ids = list(page.attributes("id"))
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.attributes("href")} <= set(ids)
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")][:3] == ["h1", "h2", "h2"]


def test_charts_are_described(pages):
    images = [attrs for _, attrs in Page(pages["accepted"]).tags if attrs.get("role") == "img"]
    assert len(images) == 5
    assert all(len(str(attrs["aria-label"])) > 60 for attrs in images)


def test_the_verdict_comes_first_and_names_the_failed_gates(pages):
    text = Page(pages["refused"]).text
    assert text.index("Refused") < text.index("2 of 4 gates fail") < text.index("What was asked")
    assert text.index("The median speed-up over 200 pairs") < text.index("What was asked")
    assert "Accepted" not in text


def test_names_of_the_user_are_text(pages):
    page = Page(pages["hostile"])
    assert "<script>alert('run')</script>" in page.text
    assert "blocks.1.<script>alert(01)</script>.\"&'.weight:0" in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "<script" not in pages["hostile"]


def test_the_same_run_gives_the_same_bytes(finished, tmp_path):
    first = write_report(finished["accepted"], tmp_path / "one.html")
    copy = shutil.copytree(finished["accepted"], tmp_path / "elsewhere")
    assert write_report(Path(copy), tmp_path / "two.html").read_bytes() == first.read_bytes()


def test_the_report_lies_in_the_run_directory_unless_told_otherwise(run_dir):
    before = render(run_dir)
    path = write_report(run_dir)
    assert path == run_dir / "stages/report/report.html"
    assert path.read_text(encoding="utf-8") == before == render(run_dir)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_bare_run_directory_gives_a_page_that_says_so(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    page = Page(render(tmp_path))
    assert "No verdict" in page.text
    assert page.text.count("not measured") > 20
    assert page.numbers == []


def test_no_directory_no_page(tmp_path):
    with pytest.raises(RunDirectoryError):
        write_report(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_nothing(run_dir, tmp_path):
    target = tmp_path / "taken"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(StorageError, match="taken"):
        write_report(run_dir, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "taken"]
    with pytest.raises(StorageError, match=r"run\.json"):
        write_report(run_dir, run_dir / "run.json" / "report.html")


def test_an_edited_result_is_announced_on_the_page(run_dir):
    path = run_dir / "stages/gate/result.json"
    path.write_text(path.read_text().replace("true", "false"))
    text = Page(render(run_dir)).text
    assert text.index("Read with care") < text.index("What was asked")
    assert "stages/gate/result.json has changed since its stage wrote it" in text


def test_text_that_no_encoding_knows_is_written_escaped(run_dir):
    (run_dir / "run.json").write_text('{"name": "half a \\ud83d pair"}')
    assert "half a \\ud83d pair" in write_report(run_dir).read_text(encoding="utf-8")


STAGES = (
    "baseline",
    *(f"cycle-0{i}/{part}" for i in (1, 3) for part in ("score", "plan", "prune", "recover")),
    *("export", "validate", "evaluate", "gate"),
)


LOST = {
    "baseline": "Frozen axes: not recorded.",
    "cycle-01/recover": "not measured",
    "cycle-03/prune": "not measured",
    "validate": "Parity: not measured.",
    "evaluate": "Flips: not measured.",
    "gate": "Gates: not judged.",
}


@pytest.mark.parametrize("stage", LOST)
def test_what_a_missing_stage_would_have_shown_is_named(run_dir, finished, stage):
    shutil.rmtree(run_dir / "stages" / stage)
    assert LOST[stage] not in Page(render(finished["accepted"])).text
    assert LOST[stage] in Page(render(run_dir)).text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("junk", [None, [], 3, "text", {}], ids=repr)
def test_a_stage_with_anything_in_it_is_no_obstacle(run_dir, stage, junk):
    (run_dir / "stages" / stage / "result.json").write_text(json.dumps(junk))
    assert "digits" in Page(render(run_dir)).text


@pytest.mark.parametrize("seed", range(40))
def test_any_value_may_be_anything(run_dir, seed):
    rng = random.Random(seed)
    for path in sorted(run_dir.rglob("*.json")):
        content = json.loads(path.read_text())
        for _ in range(rng.randint(1, 12)):
            spoil(content, rng)
        path.write_text(json.dumps(content))
    assert "prunekit report" in Page(render(run_dir)).text


def spoil(value: object, rng: random.Random) -> None:
    """Replace something somewhere inside by junk."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if rng.random() < 0.25 or not isinstance(value[key], dict | list):
            value[key] = copy.deepcopy(rng.choice(JUNK))
            return
        value = value[key]
