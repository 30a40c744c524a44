"""Who may import whom: serving -> trainers -> feature_repo, and heavy libraries only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("feature_repo", "trainers", "serving")
MAY_IMPORT = {
    "feature_repo": {"feature_repo"},
    "trainers": {"trainers", "feature_repo"},
    "serving": {"serving", "trainers", "feature_repo"},
}
NOT_IN_FEATURE_REPO = {"torch", "transformers", "peft", "faiss", "grpc"}
LANGUAGE_MODEL = {"transformers", "peft"}
LANGUAGE_MODEL_FILES = ["trainers/language/adapters.py", "trainers/language/local.py", "trainers/language/model.py"]
# What a network is fed with; nothing of ours beyond that is known to trainers/models.
MODELS_MAY_IMPORT = ("trainers.models", "trainers.batch", "trainers.encoding")


def sources(*packages: str) -> list[str]:
    found = (p.relative_to(ROOT) for package in packages for p in (ROOT / package).rglob("*.py"))
    return sorted(str(p) for p in found if "__pycache__" not in p.parts and not str(p).startswith("serving/v1/"))


def imported(path: str) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: str) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", sources(*PACKAGES))
def test_imports_go_one_way(path):
    ours = roots(path) & {*PACKAGES, "benchmarks", "tests"}
    assert ours <= MAY_IMPORT[path.split("/")[0]]


def test_three_files_import_language_model_libraries():
    assert [path for path in sources(*PACKAGES) if roots(path) & LANGUAGE_MODEL] == LANGUAGE_MODEL_FILES


@pytest.mark.parametrize("path", sources("feature_repo"))
def test_the_feature_repository_needs_no_learning_library(path):
    assert not roots(path) & NOT_IN_FEATURE_REPO


@pytest.mark.parametrize("path", sources("trainers/models"))
def test_models_know_batches_and_encodings_only(path):
    ours = {name for name in imported(path) if name.startswith(("trainers.", "feature_repo", "serving"))}
    modules = {name for name in ours if (ROOT / f"{name.replace('.', '/')}.py").exists()}
    assert not {name for name in modules if not name.startswith(MODELS_MAY_IMPORT)}


def test_models_know_no_feature_repository():
    assert not [path for path in sources("trainers/models") if "feature_repo" in roots(path)]


@pytest.mark.parametrize("module", ["serving.server", "serving.cli"])
def test_the_server_loads_no_language_model(module):
    program = f"import sys, {module}; print(sorted({{'transformers', 'peft', 'tokenizers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[]"
