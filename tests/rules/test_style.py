"""The corridor that every source file keeps: size, documentation, no leftovers, nothing that runs what it loads."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from feature_repo import columns, scenes

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("feature_repo", "trainers", "serving", "benchmarks")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 70, 10  # branches are ruff's: C901 in pyproject.toml
# Calls that run what they are given, or what they load.
RUNS_CODE = {"eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "np.load"}
# Column names that are no everyday words: whoever spells one outside columns.py should have imported it. Raw logs have
# names of their own, which may be the same; so do scene features, and the entity `scene_value`.
COLUMN_NAMES = {
    value for name, value in vars(columns).items() if name.isupper() and isinstance(value, str) and "_" in value
} - {columns.SCENE_VALUE, *(feature.name for feature in scenes.FEATURES)}
SPELL_COLUMNS = ("feature_repo/columns.py", "feature_repo/datasets/", "benchmarks/")


def sources() -> list[str]:
    found = (p.relative_to(ROOT) for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    return sorted(str(p) for p in found if "__pycache__" not in p.parts and not str(p).startswith("serving/v1/"))


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def functions(path: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", sources())
def test_a_file_is_short_and_says_what_it_is(path):
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= FILE_LINES
    assert not text or ast.get_docstring(tree(path)), "the first docstring sentence is the file's one idea"


@pytest.mark.parametrize("path", sources())
def test_functions_fit_a_screen(path):
    for function in functions(path):
        where = f"{path}:{function.lineno} {function.name}"
        assert code_lines(function) <= FUNCTION_LINES, where
        taken = function.args
        count = len(taken.posonlyargs) + len(taken.args) + len(taken.kwonlyargs)
        # Typer reads a verb's options from its parameters.
        assert count <= PARAMETERS or path.startswith("serving/cli"), where


@pytest.mark.parametrize("path", sources())
def test_nothing_is_left_over(path):
    text = (ROOT / path).read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    stars = [n for n in ast.walk(tree(path)) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars


@pytest.mark.parametrize("path", sources())
def test_nothing_runs_what_it_loads(path):
    calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
    assert not calls & RUNS_CODE
    imported = {a.name for n in ast.walk(tree(path)) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    assert not imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


@pytest.mark.parametrize("path", [p for p in sources() if not p.startswith(SPELL_COLUMNS)])
def test_column_names_are_spelt_in_one_file(path):
    docstrings = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
    spelt = {
        node.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }
    assert not spelt & COLUMN_NAMES, "use feature_repo.columns"


def test_the_readme_shows_every_source_file_in_its_tree():
    readme = (ROOT / "README.md").read_text()
    shown: set[str] = set()
    folders: list[str] = []
    for line in readme[readme.index("## The tree") :].split("```")[1].splitlines():
        found = re.match(r"^( *)(\S+)", line)
        if found is None:
            continue
        depth, name = len(found[1]) // 2, found[2]
        folders[depth:] = [name.rstrip("/")]
        shown.add("/".join(folders))
    assert sorted(set(sources()) - shown) == []
    gone = {path for path in shown if path.endswith(".py") and not (ROOT / path).exists()}
    assert sorted(gone) == []
