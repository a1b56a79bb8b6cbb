"""Goals in a recipe, one or several, and the target that they are measured on."""

from pathlib import Path

from prunekit.plan import Goal
from prunekit.recipe import Recipe, load_recipe

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
SHORT = "name: tiny\nworkload: workload.py\ngoal: {remove: 0.5}\n"


def load(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text)
    return load_recipe(tmp_path / "recipe.yaml")


def test_goals_alone_and_together(tmp_path):
    speedup = load(tmp_path, SHORT.replace("remove: 0.5", "kind: speedup, reach: 2"))
    assert [section.goal for section in speedup.goals] == [Goal("speedup", reach=2, tolerance=0.03)]
    both = load(
        tmp_path,
        SHORT.replace(
            "{remove: 0.5}",
            "[{kind: latency_ms, reach: 20, percentile: 99}, {kind: macs, remove: 0.3, tolerance: 0.1}]",
        ),
    )
    assert [section.goal for section in both.goals] == [
        Goal("latency_ms", reach=20, tolerance=0.03, percentile=99),
        Goal("macs", remove=0.3, tolerance=0.1),
    ]
    assert [recipe.by_target for recipe in (speedup, both, load(tmp_path, SHORT))] == [True, True, False]
    absolute = load(tmp_path, SHORT.replace("remove: 0.5", "kind: macs, reach: 1000")).goal.goal
    assert (absolute.reach, type(absolute.reach)) == (1000, int)


def test_validation_is_on_the_target_unless_it_says_otherwise(tmp_path):
    def settings(text: str) -> tuple:
        found = load(tmp_path, SHORT + text).validation
        return found.runtime, found.batch, found.threads, found.precision

    target = "target: {runtime: openvino, batch: 8, threads: 2, precision: bf16}\n"
    assert settings("") == ("onnxruntime", 1, 1, "fp32")
    assert settings(target) == ("openvino", 8, 2, "bf16")
    assert settings(target + "validate: {batch: 1, precision: fp32}") == ("openvino", 1, 2, "fp32")


def test_the_example_asks_for_a_speedup():
    recipe = load_recipe(DIGITS / "target.yaml")
    dense = load_recipe(DIGITS / "recipe.yaml")
    assert [str(section.goal) for section in recipe.goals] == ["2.0 speedup"]
    assert (recipe.by_target, dense.by_target) == (True, False)
    assert (recipe.workload, recipe.parent) == (dense.workload, dense.parent)
