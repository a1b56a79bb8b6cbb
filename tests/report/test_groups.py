"""The picture of the groups against rows written by hand."""

from __future__ import annotations

import pytest
from tests.report.pages import Page

from prunekit.report.reading import Entry, RunRecord, read_run
from prunekit.report.views import groups
from prunekit.report.write import render

TENSORS = {
    "conv1.weight": [8, 3, 3, 3],
    "norm.weight": [8],
    "norm.bias": [8],
    "norm.running_mean": [8],
    "conv2.weight": [8, 8, 3, 3],
    "fc.weight": [10, 12],
    "fc.bias": [10],
    "scale": [1],
}
GROUPS = [
    ("b:channel", [("norm.weight", 0, "follower", 8), ("fc.weight", 1, "consumer", 4)]),
    (
        "a:channel",
        [
            ("conv2.weight", 0, "producer", 8),
            ("conv1.weight", 0, "producer", 8),
            ("conv2.weight", 1, "consumer", 8),
            ("norm.bias", 0, "follower", 8),
            ("norm.running_mean", 0, "follower", 8),
            ("fc.weight", 1, "consumer", 8),
        ],
    ),
    ("c:neuron", [("later.weight", 0, "producer", 5)]),
]
FROZEN = [("fc.weight:0", [("fc.weight", 0, "producer", 10), ("fc.bias", 0, "follower", 10)])]
OUTPUT = "the model's outputs keep their shape [output] net.py:9: return fc(x)"


def made(owners, frozen=(), tensors=None, widths=None) -> RunRecord:
    """A run with this baseline and, with widths, one plan."""
    baseline = {
        "tensors": TENSORS if tensors is None else tensors,
        "groups": [
            {"name": name, "granularity": name.partition(":")[2], "size": 8, "slices": slices(parts)}
            for name, parts in owners
        ],
        "frozen": [
            {
                "name": name,
                "operator": "output",
                "reason": "the model's outputs keep their shape",
                "source": "net.py:9: return fc(x)",
                "slices": slices(parts),
            }
            for name, parts in frozen
        ],
    }
    results = {"baseline": baseline, "cycle-01/plan": {"widths": widths or {}}}
    entries = {stage: Entry(content, f"stages/{stage}/result.json") for stage, content in results.items()}
    return RunRecord(run=Entry({}, "run.json"), recipe=None, results=entries, stages={}, latency=None)


def slices(parts) -> list[dict]:
    return [
        {"tensor": tensor, "dim": dim, "role": role, "indices": indices}
        for tensor, dim, role, indices in parts
    ]


def letters(picture: groups.Matrix) -> list[tuple[str, str, list[str], bool]]:
    return [
        (
            row.module,
            row.tensors,
            ["".join(mark.letter for mark in cell) for cell in row.cells],
            bool(row.frozen),
        )
        for row in picture.rows
    ]


@pytest.fixture
def picture() -> groups.Matrix:
    found = groups.matrix(made(GROUPS, FROZEN, widths={"a:channel": [8, 3], "b:channel": [8, 8]}))
    assert found is not None
    return found


def test_columns_are_the_groups_in_the_plans_order_with_their_widths(picture):
    assert [
        (one.name, one.granularity, one.before.text, one.after and one.after.text) for one in picture.columns
    ] == [
        ("a:channel", "channel", "8", "3"),
        ("b:channel", "channel", "8", "8"),
        ("c:neuron", "neuron", "8", None),
    ]


def test_rows_are_the_tensors_in_the_models_order(picture):
    assert letters(picture) == [
        ("conv1", "weight", ["P", "", ""], False),
        ("norm", "weight", ["", "F", ""], False),
        ("norm", "bias, running_mean", ["F", "", ""], False),
        ("conv2", "weight", ["PC", "", ""], False),
        ("fc", "weight", ["C", "C", ""], True),
        ("fc", "bias", ["", "", ""], True),
        ("later", "weight", ["", "", "P"], False),
    ]
    assert [row.span for row in picture.rows] == [1, 2, 0, 1, 2, 0, 1]
    assert (picture.by_module, picture.has_frozen, picture.left_out) == (False, True, ())


def test_a_mark_says_dimension_number_of_indices_and_what_froze_it(picture):
    _, _, norm, conv, fc, bias, later = picture.rows
    assert [mark.title for mark in norm.cells[0]] == [
        "a:channel, follower: bias, running_mean dim 0, 8 of 8 indices"
    ]
    assert [(mark.style, mark.title) for mark in conv.cells[0]] == [
        ("producer", "a:channel, producer: weight dim 0, 8 of 8 indices"),
        ("consumer", "a:channel, consumer: weight dim 1, 8 of 8 indices"),
    ]
    assert fc.cells[1][0].title == "b:channel, consumer: weight dim 1, 4 of 12 indices"
    assert bias.frozen == (groups.Mark("", "frozen", f"frozen: bias dim 0, 10 of 10 indices: {OUTPUT}"),)
    assert later.cells[2][0].title == "c:neuron, producer: weight dim 0, 5 indices"


def test_above_200_tensors_a_row_is_a_module():
    parts = [(f"m{i}.{leaf}", 0, "producer", 4) for i in range(101) for leaf in ("weight", "bias")]
    assert len(parts) == 202
    large = groups.matrix(made([("a:channel", parts)], tensors={}))
    small = groups.matrix(made([("a:channel", parts[:200])], tensors={}))
    assert large is not None
    assert small is not None
    assert letters(large)[0] == ("m0", "weight, bias", ["P"], False)
    assert (large.by_module, len(large.rows), small.by_module) == (True, 101, False)
    assert large.rows[0].cells[0][0].title == "a:channel, producer: weight, bias dim 0, 4 indices"


def test_what_there_is_no_room_for_is_counted():
    many = [(f"g{i}:channel", [(f"m{i}.weight", 0, "producer", 4)]) for i in range(52)]
    picture = groups.matrix(made(many, tensors={}))
    assert picture is not None
    assert (len(picture.columns), len(picture.rows), picture.by_module) == (40, 40, True)
    assert picture.left_out == ("and 12 more groups",)
    wide = [("a:channel", [(f"m{i}.weight", 0, "producer", 4) for i in range(321)])]
    tall = groups.matrix(made(wide, tensors={}))
    assert tall is not None
    assert (len(tall.rows), tall.left_out) == (120, ("and 201 more modules",))


def test_rows_that_are_cut_off_count_towards_no_span():
    parts = [(f"m{i // 4}.t{i}", i, "producer", 4) for i in range(122)]
    picture = groups.matrix(made([("a:channel", parts)], tensors={}))
    assert picture is not None
    assert sum(row.span for row in picture.rows) == len(picture.rows) == 120
    assert picture.left_out == ("and 2 more rows",)


@pytest.mark.parametrize("owners", [[], [("a:channel", [])]], ids=["no group", "no slices"])
def test_without_slices_there_is_no_picture(owners):
    assert groups.matrix(made(owners)) is None


def test_a_role_that_nobody_knows_is_a_question_mark():
    picture = groups.matrix(made([("a:channel", [("m.weight", 0, "witness", 4)])]))
    assert picture is not None
    assert [(mark.letter, mark.style) for mark in picture.rows[0].cells[0]] == [("?", "unknown")]


def test_the_page_shows_the_marks_of_a_chain(finished):
    page = Page(render(finished["accepted"]))
    titles = [attrs.get("title") or "" for _, attrs in page.tags if "mark " in (attrs.get("class") or "")]
    marks = [title.partition(": ") for title in titles if title]
    name = "layer1.0.conv1.weight:0"
    assert (f"{name}, producer", ": ", "weight:0 dim 0, 32 of 32 indices") in marks
    assert sum(head.endswith(", producer") for head, _, _ in marks) == 20
    assert sum(head.endswith(", consumer") for head, _, _ in marks) == 20
    assert "prunekit inspect --slices" not in page.text


def test_a_large_model_says_what_is_left_out(finished):
    assert len(groups.matrix(read_run(finished["hostile"])).columns) == 40
    text = " ".join(Page(render(finished["hostile"])).text.split())
    assert "and 40 more groups; prunekit inspect --slices lists all." in text
    assert "a row is a module with all its tensors" in text


def test_a_run_that_recorded_no_slices_says_so(run_dir):
    path = run_dir / "stages/baseline/result.json"
    path.write_text(path.read_text().replace('"slices"', '"other"'))
    assert "The slices of the groups: not recorded." in Page(render(run_dir)).text
