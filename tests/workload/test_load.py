import sys

import pytest
import torch
from safetensors.torch import save_file

from prunekit.errors import WorkloadError
from prunekit.workload import build_parent, load_workload, predict, source_digest

GOOD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from prunekit.workload import ImageClassification, Split, Splits
import network

def split(name, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 4, generator=generator)
    return Split(name, TensorDataset(images, torch.arange(6) % 2))

def workload():
    names = ("train", "calibration", "validation", "test")
    splits = Splits(**{name: split(name, seed) for seed, name in enumerate(names)})
    return ImageClassification(name="w", build=network.build, splits=splits, class_names=("a", "b"))
"""


@pytest.fixture(autouse=True)
def _imports_as_found():
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name == "network" or name.startswith("prunekit_workload_"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "network.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 2)\n")
    (tmp_path / "workload.py").write_text(GOOD)
    return tmp_path


def test_a_workload_file_is_loaded_with_its_siblings(folder):
    workload = load_workload(folder / "workload.py")
    table = predict(build_parent(workload), workload.splits.validation, workload)
    assert workload.name == "w"
    assert table["label"].tolist() == ["a", "b"] * 3


def test_each_load_reads_the_siblings_of_its_own_folder_afresh(folder, tmp_path_factory):
    load_workload(folder / "workload.py")
    (folder / "network.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 3)\n")
    assert load_workload(folder / "workload.py").build().out_features == 3
    other = tmp_path_factory.mktemp("other")
    (other / "network.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 5)\n")
    (other / "workload.py").write_text(GOOD)
    assert load_workload(other / "workload.py").build().out_features == 5
    assert str(folder) not in sys.path


def test_another_function_can_be_named(folder):
    (folder / "workload.py").write_text(GOOD + "\ndef tiny():\n    return workload()\n")
    assert load_workload(folder / "workload.py", "tiny").name == "w"


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("x = 1\ny = 1 / 0\n", ":2", "ZeroDivisionError: division by zero"),
        ("def workload(:\n", ":1", "SyntaxError"),
        ("import no_such_module_at_all\n", ":1", "ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(3)\n", ":2", "SystemExit: 3"),
        ("def workload():\n    import json\n    return json.loads('{')\n", ":3", "JSONDecodeError"),
        ("x = 1\n", "", r"no function workload\(\)"),
        ("workload = 3\n", "", r"no function workload\(\)"),
        ("def workload():\n    return 5\n", "", "a int without name, kind"),
        ("def workload(which):\n    return which\n", "", "TypeError"),
        (
            "import torch\nfrom prunekit.workload import Split\ndef workload():\n    Split('val', 3)\n",
            ":4: split val",
            "which has no length",
        ),
    ],
)
def test_what_fails_in_the_file_is_one_paragraph_with_file_and_line(tmp_path, source, line, message):
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(WorkloadError, match=message) as caught:
        load_workload(file)
    assert caught.value.where == f"{file}{line}"
    assert "\n" not in str(caught.value)


def test_a_failure_in_a_sibling_names_the_sibling(folder):
    (folder / "network.py").write_text("\n\nraise ValueError('broken sibling')\n")
    with pytest.raises(WorkloadError, match="broken sibling") as caught:
        load_workload(folder / "workload.py")
    assert caught.value.where == f"{folder / 'network.py'}:3"


def test_unusable_data_is_refused_with_the_file(folder):
    (folder / "workload.py").write_text(
        GOOD.replace("return Split", "images[2] = float('nan')\n    return Split")
    )
    with pytest.raises(WorkloadError, match="NaN") as caught:
        load_workload(folder / "workload.py")
    assert caught.value.where == f"{folder / 'workload.py'}: split train, example 2"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match="no such file"):
        load_workload(tmp_path / "absent.py")


def test_the_source_digest_follows_the_file_and_its_siblings(folder):
    before = source_digest(folder / "workload.py")
    assert source_digest(folder / "workload.py") == before
    (folder / "network.py").write_text("# changed\n")
    assert source_digest(folder / "workload.py") != before


def test_build_parent_depends_on_its_seed_alone(workload):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (build_parent(workload, seed=seed)[1].weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_build_parent_loads_the_checkpoint(workload, tmp_path):
    trained = build_parent(workload, seed=9)
    save_file(trained.state_dict(), tmp_path / "parent.safetensors")
    object.__setattr__(workload, "checkpoint", tmp_path / "parent.safetensors")
    loaded = build_parent(workload, seed=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), trained.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("damage", ["missing", "garbage", "other model"])
def test_an_unusable_checkpoint_is_named(workload, tmp_path, damage):
    path = tmp_path / "parent.safetensors"
    if damage == "garbage":
        path.write_bytes(b"not a checkpoint at all")
    elif damage == "other model":
        save_file({"weight": torch.zeros(2)}, path)
    object.__setattr__(workload, "checkpoint", path)
    with pytest.raises(WorkloadError, match="checkpoint") as caught:
        build_parent(workload)
    assert caught.value.where == str(path)
