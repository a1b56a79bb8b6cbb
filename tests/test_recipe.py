"""The recipe: short ones work, and every mistake is one paragraph that says where and what to do."""

import dataclasses
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from prunekit.deploy.onnx import OPSETS
from prunekit.errors import RecipeError
from prunekit.evaluate import GATES, MaxQualityDrop, MaxSliceDrop, MinSpeedup
from prunekit.measure import RUNTIMES
from prunekit.plan import GOAL_KINDS, SCOPES, Goal
from prunekit.plan.goal import MEASURED_KINDS
from prunekit.plan.levers import MOST_LEVELS
from prunekit.recipe import Recipe, load_recipe
from prunekit.recipe.base import section_in
from prunekit.recipe.goal import GoalSection, TargetSection
from prunekit.recipe.sections import Export, Parent, Recover, Schedule, Section
from prunekit.recipe.training import Distill
from prunekit.recover import SCHEDULES, DistillationSettings, TrainingSettings
from prunekit.targeting.timing import VARIANTS
from prunekit.types import WIDTHS

SHORT = "name: tiny\nworkload: workload.py\ngoal: {remove: 0.5}\n"
DOCS = Path(__file__).parents[1] / "docs" / "recipe.md"


def load(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text)
    return load_recipe(tmp_path / "recipe.yaml")


def test_three_lines_are_a_recipe(tmp_path):
    recipe = load(tmp_path, SHORT)
    assert (recipe.name, recipe.workload, recipe.goal.kind, recipe.goal.remove) == (
        "tiny",
        "workload.py",
        "sparsity",
        0.5,
    )
    assert recipe.schedule.cycles == 1
    assert recipe.recover.epochs is None
    assert recipe.groups.kinds == WIDTHS
    assert recipe.gates == ()


def test_a_recipe_is_frozen(tmp_path):
    recipe = load(tmp_path, SHORT)
    with pytest.raises(ValidationError):
        recipe.seed = 1
    with pytest.raises(ValidationError):
        recipe.goal.remove = 0.9


def test_gates_with_a_limit_or_with_settings(tmp_path):
    gates = "gates:\n  - max_quality_drop: 0.01\n  - max_slice_drop: {limit: 0.05, by: point}\n"
    gates += "  - min_speedup: 2\n"
    assert load(tmp_path, SHORT + gates).gates == (
        MaxQualityDrop(limit=0.01),
        MaxSliceDrop(limit=0.05, by="point"),
        MinSpeedup(limit=2),
    )


def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path):
    """PyYAML follows YAML 1.1, where 1e-3 is a string (https://yaml.org/spec/1.2.2/#1023-float)."""
    recipe = load(tmp_path, SHORT + "recover: {learning_rate: 1e-3, weight_decay: 5E-4, epochs: 2}\n")
    assert (recipe.recover.learning_rate, recipe.recover.weight_decay, recipe.recover.epochs) == (
        1e-3,
        5e-4,
        2,
    )


MISTAKES = {
    "remove of 1.2": (
        "name: a\nworkload: w.py\ngoal:\n  remove: 1.2\n",
        "goal.remove (line 4)",
        "It is 1.2",
        "below 1",
    ),
    "unknown key": (
        SHORT + "golas: 1\n",
        "golas (line 4)",
        "unknown (did you mean 'goal'?)",
        "name, workload",
    ),
    "unknown key inside": (
        "name: a\nworkload: w.py\ngoal: {remov: 0.5}",
        "goal.remov",
        "'remove'",
        "kind, remove",
    ),
    "missing section": (
        "name: a\nworkload: w.py\n",
        "recipe.yaml, goal",
        "It is missing",
        "goal: {remove: 0.5}",
    ),
    "wrong type": (SHORT + "seed: two\n", "seed (line 4)", "It is 'two'", "a whole number"),
    "a boolean is no number": (SHORT + "seed: true\n", "seed (line 4)", "It is True", "a whole number"),
    "a number is no name": (SHORT.replace("tiny", "2024"), "name (line 1)", "2024 as int", "in quotes"),
    "a name that leaves the folder": (SHORT.replace("tiny", "../up"), "name (line 1)", "'../up'", "letters"),
    "nan": (SHORT.replace("0.5", ".nan"), "goal.remove", "It is nan", "from 0 to below 1"),
    "unknown fallback": (SHORT + "importance: {fallback: l3}", "importance.fallback", "'l2'", "taylor"),
    "accumulated in training": (
        SHORT + "importance: {criterion: movement}",
        "importance.criterion",
        "There is no 'movement'",
        "one of l1",
    ),
    "nothing asked for": (
        SHORT.replace("remove: 0.5", "kind: macs"),
        "goal (line 3)",
        "Nothing is asked",
        "`reach`",
    ),
    "asked twice": (
        SHORT.replace("0.5", "0.5, reach: 3"),
        "goal (line 3)",
        "Both remove and reach",
        "exactly one",
    ),
    "absolute sparsity": (
        SHORT.replace("remove: 0.5", "reach: 3"),
        "goal.reach",
        "kind is sparsity",
        "`remove`",
    ),
    "unknown kind": (SHORT.replace("remove", "kind: latency, remove"), "goal.kind", "'latency_ms'", "macs"),
    "a share of what is measured": (
        SHORT.replace("remove", "kind: speedup, remove"),
        "goal.remove (line 3)",
        "speedup is measured",
        "`reach`: times as fast",
    ),
    "a scope of what is measured": (
        SHORT.replace("remove: 0.5", "kind: speedup, reach: 2, scope: global"),
        "goal.scope",
        "is measured",
        "no scope",
    ),
    "a percentile of another kind": (
        SHORT.replace("remove: 0.5", "kind: speedup, reach: 2, percentile: 99"),
        "goal.percentile",
        "The kind is speedup",
        "latency_ms alone",
    ),
    "half a MAC": (
        SHORT.replace("remove: 0.5", "kind: macs, reach: 2.5"),
        "goal.reach",
        "It is 2.5",
        "whole number",
    ),
    "unknown key of one of several goals": (
        SHORT.replace("{remove: 0.5}", "\n  - {kind: speedup, reach: 2}\n  - {kind: size_bytes, reac: 3}"),
        "goal[1].reac (line 5)",
        "'reach'",
        "a key of goal[1]: kind, remove",
    ),
    "the same twice": (
        SHORT.replace("{remove: 0.5}", "[{kind: speedup, reach: 2}, {kind: speedup, reach: 3}]"),
        "goal[1].kind",
        "two goals of the kind speedup",
        "once",
    ),
    "a sparsity among others": (
        SHORT.replace("{remove: 0.5}", "[{kind: speedup, reach: 2}, {remove: 0.3}]"),
        "goal[1].kind",
        "one of several",
        "alone",
    ),
    "no goal": (SHORT.replace("{remove: 0.5}", "[]"), "goal (line 3)", "empty", "goal: {remove: 0.5}"),
    "unknown key of the target": (
        SHORT + "target: {runtim: openvino}\n",
        "target.runtim (line 4)",
        "'runtime'",
        "a key of target: runtime, threads",
    ),
    "memory of a module": (
        SHORT.replace("remove: 0.5", "kind: memory_bytes, reach: 1000") + "target: {runtime: torch_eager}\n",
        "target.runtime (line 4)",
        "the goal is memory_bytes",
        "onnxruntime or openvino",
    ),
    "another runtime": (SHORT + "target: {runtime: onnx}\n", "target.runtime", "'onnx'", "`openvino`"),
    "empty section": (SHORT + "schedule:\n", "schedule (line 4)", "It is None", "a section with cycles"),
    "one shot in two": (
        SHORT + "schedule: {curve: oneshot, cycles: 2}",
        "schedule.curve",
        "2 cycles",
        "cycles of 1",
    ),
    "unknown criterion": (SHORT + "importance: {criterion: l3}", "importance.criterion", "'l2'", "taylor"),
    "item of a list": (
        SHORT + "groups: {granularity: [chanel]}",
        "groups.granularity[0]",
        "'channel'",
        "neuron",
    ),
    "no list": (SHORT + "groups: {only: conv1}", "groups.only", "It is 'conv1'", "[layer1.*]"),
    "a key of a section that may be absent": (
        SHORT + "recover: {distill: {logit: 1}}",
        "recover.distill.logit",
        "logits",
        "a key of recover.distill: logits, temperature",
    ),
    "two budgets": (
        SHORT + "recover: {epochs: 1, share_of_original: 1}",
        "share_of_original",
        "together with epochs",
        "one",
    ),
    "share of a checkpoint": (
        SHORT + "parent: {checkpoint: a.safetensors}\nrecover: {share_of_original: 0.2}",
        "recover.share_of_original",
        "not known",
        "recover.epochs",
    ),
    "pickled checkpoint": (
        SHORT + "parent: {checkpoint: a.pt}",
        "parent.checkpoint",
        "'a.pt'",
        ".safetensors",
    ),
    "checkpoint and training": (
        SHORT + "parent: {checkpoint: a.safetensors, epochs: 2}",
        "parent.epochs",
        "together with parent.checkpoint",
        "remove one",
    ),
    "unknown gate": (SHORT + "gates: [max_drop: 1]", "gates[0]", "no gate 'max_drop'", "min_speedup"),
    "unknown setting of a gate": (
        SHORT + "gates: [min_speedup: {limt: 2}]",
        "gates[0].min_speedup.limt",
        "'limit'",
        "by",
    ),
    "gate without limit": (
        SHORT + "gates: [min_speedup: {by: point}]",
        "gates[0].min_speedup.limit",
        "missing",
        "limit",
    ),
    "gate out of range": (
        SHORT + "gates:\n  - max_quality_drop: -1",
        "gates[0].max_quality_drop (line 5)",
        "-1",
        "0 or",
    ),
    "gates of another type": (SHORT + "gates: 3", "gates (line 4)", "It is 3", "a list of gates"),
    "key given twice": (SHORT + "name: again\n", "line 4, column 1", "'name' is given twice", ""),
    "not YAML": (SHORT + "x: [", "line 4", "not YAML", ""),
    "code": (SHORT + "x: !!python/object/apply:os.system [ls]", "line 4", "not YAML", ""),
    "no mapping": ("[1]", "recipe.yaml", "[1]", "keys such as"),
    "empty": ("", "recipe.yaml", "None", "keys such as"),
    "key that is no word": (SHORT + "1: 2", "recipe.yaml", "The key 1 is not text", "words"),
}


@pytest.mark.parametrize(("text", "place", "given", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_says_where_what_and_what_is_expected(tmp_path, text, place, given, expected):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert place in caught.value.where
    assert given in message
    assert expected in caught.value.expected
    assert "\n" not in message
    assert "pydantic" not in message
    assert caught.value.exit_code == 2


def test_further_mistakes_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"seed .*Also wrong: validate\.batch, foo\."):
        load(tmp_path, SHORT + "validate: {batch: 0}\nseed: -1\nfoo: 1\n")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.yaml: .*No such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    with pytest.raises(RecipeError, match="larger than a megabyte"):
        load_recipe(tmp_path / "large")


def test_the_recipe_knows_what_the_rooms_know():
    def choices(section: type[Section], key: str) -> tuple[str, ...]:
        return section.model_fields[key].annotation.__args__

    for kind in GOAL_KINDS:
        assert GoalSection(kind=kind, remove=0.5).goal == Goal(kind, remove=0.5)
    for kind in MEASURED_KINDS:
        assert GoalSection(kind=kind, reach=2).goal == Goal(kind, reach=2, tolerance=0.03)
    assert set(choices(GoalSection, "scope")) <= set(SCOPES)
    assert set(choices(TargetSection, "runtime")) == set(RUNTIMES)
    assert TargetSection().most_levels == MOST_LEVELS
    assert TargetSection().variants == VARIANTS
    for curve in SCHEDULES:
        assert Schedule(curve=curve).curve == curve
    for number in (OPSETS[0], OPSETS[-1]):
        assert Export(opset=number).opset == number
    with pytest.raises(ValidationError):
        Export(opset=OPSETS[-1] + 1)


def test_a_curve_is_a_name_or_pairs(tmp_path):
    pairs = SHORT + "schedule: {cycles: 2, curve: [[0.5, 0.3], [1, 1]]}\n"
    assert load(tmp_path, pairs).schedule.curve == ((0.5, 0.3), (1.0, 1.0))
    assert load(tmp_path, SHORT + "schedule: {cycles: 4, curve: one_cycle}\n").schedule.curve == "one_cycle"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{curve: one-cycle}", r"schedule\.curve.*did you mean 'one_cycle'.*or pairs such as"),
        ("{cycles: 2, curve: 0.5}", r"schedule\.curve.*It is 0\.5\. Expected a list of pairs"),
        ("{cycles: 2, curve: [[0.5, 0.3], [1, 0.9]]}", r"schedule\.curve.*the last of them 1"),
        (
            "{cycles: 3, curve: [[0.34, 0.3], [0.6, 0.6], [1, 1]]}",
            "Cycle 1 of 3 .progress 0.3333. removes nothing",
        ),
        ("{cycles: 4, curve: [[0.25, 0.3], [1, 1]]}", "Cycle 2 of 4 .progress 0.5000. removes nothing"),
    ],
)
def test_curves_that_are_mistakes(tmp_path, schedule, message):
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, SHORT + f"schedule: {schedule}\n")


def test_training_keys_and_defaults_are_those_of_the_training_settings():
    settings = {
        field.name: field.default for field in dataclasses.fields(TrainingSettings) if field.name != "seed"
    }
    assert Parent().settings == settings
    found = dict.fromkeys(("optimizer", "learning_rate", "schedule", "weight_decay"))
    assert Recover().settings == {**settings, **found}


def test_the_section_of_a_distillation_is_its_settings():
    settings = {field.name: field.default for field in dataclasses.fields(DistillationSettings)}
    assert Distill().settings.items() <= settings.items()


def keys_of(section: type[Section], place: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        key = f"{place}{field.alias or name}"
        found.append(key)
        below = section_in(field.annotation)
        found += keys_of(below, f"{key}.") if below is not None else []
    return found


def test_the_documentation_has_every_key_and_no_other():
    documented = re.findall(r"^\| `([a-z_.]+)` \|", DOCS.read_text(), flags=re.MULTILINE)
    assert sorted(documented) == sorted([*keys_of(Recipe), *(f"gates.{name}" for name in GATES)])


def test_the_documentation_says_what_the_recipe_says():
    table = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", DOCS.read_text(), flags=re.MULTILINE))

    def check(section: type[Section], place: str) -> None:
        for name, field in section.model_fields.items():
            key = f"{place}{field.alias or name}"
            below = section_in(field.annotation)
            if below is not None:
                check(below, f"{key}.")
            else:
                assert table[key] == field.description, key

    check(Recipe, "")


def test_the_example_in_the_documentation_is_a_recipe(tmp_path):
    examples = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        assert load(tmp_path, example).name
