"""The house rules that a machine can check; ``scripts/check`` holds the direction of imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "prunekit").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
OURS = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]

MOST_LINES_IN_A_FILE = 400
MOST_LINES_IN_A_FUNCTION = 60
LONG_FILES: dict[str, str] = {}
"""Files that may be longer: path from the root, and the reason."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer: ``path:function``, and the reason."""

NEVER_IN_A_NAME = {"filter", "filters", "util", "utils", "helper", "helpers", "manager", "managers"}
NEVER_A_NAME = {"common", "misc", "stuff"}
RATIO_OF_WHAT = re.compile(r"((prune|pruned|pruning|sparsity|keep|compression)_?)?ratios?", re.IGNORECASE)

RUNS_CODE_FROM_DATA = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NEVER_CALLED = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "torch.save",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pd.read_pickle",
}
RUN_THE_USERS_CODE = {
    "src/prunekit/workload/load.py": "the workload file is the user's own Python, all the code a recipe runs"
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_files_are_short():
    long = [_place(path) for path in OURS if len(_text(path).splitlines()) > MOST_LINES_IN_A_FILE]
    assert long == sorted(LONG_FILES)


def test_functions_are_short():
    long = [
        f"{_place(path)}:{node.name}"
        for path in OURS
        for node in _functions(path)
        if _lines_besides_docstring(node) > MOST_LINES_IN_A_FUNCTION
    ]
    assert sorted(long) == sorted(LONG_FUNCTIONS)


def test_names_keep_to_the_vocabulary():
    offences = [
        f"{_place(path)}:{line}: {name}"
        for path in SOURCES
        for name, line in _defined_names(path)
        if NEVER_IN_A_NAME & set(_words(name)) or name in NEVER_A_NAME or RATIO_OF_WHAT.fullmatch(name)
    ]
    assert offences == []


def test_nothing_runs_code_from_data():
    offences = [offence for path in SOURCES for offence in _unsafe(path)]
    files = {offence.split(":")[0] for offence in offences}
    assert files == set(RUN_THE_USERS_CODE), offences


def test_no_error_is_swallowed():
    offences = [
        f"{_place(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or _dotted(node.type) in {"Exception", "BaseException"})
        and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
    ]
    assert offences == []


def test_one_file_knows_how_a_file_is_made_safe():
    syncing = [
        _place(path)
        for path in SOURCES
        if any(
            isinstance(node, ast.Attribute) and node.attr in {"fsync", "fdatasync"}
            for node in ast.walk(_tree(path))
        )
    ]
    assert syncing == ["src/prunekit/files.py"]


def test_every_test_asserts():
    silent = []
    for path in TESTS:
        functions = list(_functions(path))
        asserting = {node.name for node in functions if _asserts(node, set())}
        silent += [
            f"{_place(path)}:{node.name}"
            for node in functions
            if node.name.startswith("test") and not _asserts(node, asserting)
        ]
    assert silent == []


def test_these_rules_find_what_they_forbid(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle\n"
        "class Safe(yaml.SafeLoader): ...\n"
        "yaml.load('x', Loader=Safe), yaml.load('x', Loader=yaml.Loader)\n"
        "from joblib import load\n"
        "def pruning_ratio(channelFilter):\n"
        "    data_utils = eval('1')\n"
        "    return torch.load('x'), np.load('y', allow_pickle=True), run('z', shell=True)\n"
    )
    assert [offence.rpartition(": ")[2] for offence in _unsafe(path)] == [
        "pickle",
        "joblib",
        "yaml.load with an unsafe loader",
        "eval",
        "torch.load without weights_only=True",
        "allow_pickle=True",
        "shell=True",
    ]
    names = {name for name, _ in _defined_names(path)}
    assert names == {"bad", "Safe", "pruning_ratio", "channelFilter", "data_utils"}
    assert RATIO_OF_WHAT.fullmatch("pruning_ratio")
    assert not RATIO_OF_WHAT.fullmatch("paired_ratios")
    assert _words("channelFilter") == ["channel", "filter"]
    assert not _asserts(next(_functions(path)), set())


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path))


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(_tree(path)) if isinstance(node, Function))


def _lines_besides_docstring(node: Function) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _defined_names(path: Path) -> Iterator[tuple[str, int]]:
    """Names that this file gives to something: files, classes, functions, arguments, variables."""
    yield path.stem, 1
    for node in ast.walk(_tree(path)):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def _unsafe(path: Path) -> Iterator[str]:
    tree = _tree(path)
    safe_loaders = {"yaml.SafeLoader"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and [_dotted(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] in RUNS_CODE_FROM_DATA]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module] if (node.module or "").split(".")[0] in RUNS_CODE_FROM_DATA else []
        elif isinstance(node, ast.Call):
            found = list(_unsafe_call(node, safe_loaders))
        yield from (f"{_place(path)}:{node.lineno}: {what}" for what in found if what)


def _unsafe_call(node: ast.Call, safe_loaders: set[str]) -> Iterator[str]:
    name = _dotted(node.func)
    given = {keyword.arg for keyword in node.keywords if _is_true(keyword.value)}
    if name in NEVER_CALLED or name.endswith(".to_pickle"):
        yield name
    if name == "torch.load" and "weights_only" not in given:
        yield "torch.load without weights_only=True"
    if name == "yaml.load" and not {_dotted(keyword.value) for keyword in node.keywords} <= safe_loaders:
        yield "yaml.load with an unsafe loader"
    yield from (f"{keyword}=True" for keyword in ("allow_pickle", "shell") if keyword in given)


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _asserts(function: Function, asserting: set[str]) -> bool:
    """Whether it asserts, expects an error, or calls one of the functions that do."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            last = name.rpartition(".")[2]
            if name in asserting or name in {"pytest.raises", "pytest.warns"} or last.startswith("assert"):
                return True
    return False
