"""The wire contract: its form, no change that breaks callers, and committed stubs that say what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "proto").rglob("*.proto"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outputs, *PROTOS], cwd=ROOT, check=True)
    return out / "serving" / "v1"


def test_committed_stubs_equal_generated_ones(generated: Path) -> None:
    committed = ROOT / "serving" / "v1"
    names = {path.name for path in generated.iterdir()}
    assert names == {path.name for path in committed.iterdir() if path.suffix in (".py", ".pyi")} - {"__init__.py"}
    for name in names:
        assert (committed / name).read_text() == (generated / name).read_text(), f"run `make proto`: {name} is stale"


def buf(*arguments: str, proto: Path = ROOT / "proto") -> str:
    """What `buf` finds; nothing where all is well."""
    program = Path(sys.executable).with_name("buf")
    done = subprocess.run([program, arguments[0], proto, *arguments[1:]], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_the_proto_files_are_well_formed() -> None:
    assert buf("lint") == ""


def test_no_change_breaks_callers_of_what_was_released() -> None:
    assert buf("breaking", "--against", str(ROOT / "proto" / "released.binpb")) == ""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("bool proven = 4;", "bool proven = 5;", "was deleted"),
        ("repeated float scores = 2;", "repeated double scores = 2;", "changed type"),
        ("OUTCOME_CLICKED = 2;", "OUTCOME_TAPPED = 2;", "OUTCOME_CLICKED"),
        ("rpc Explain(ExplainRequest)", "rpc Reason(ExplainRequest)", "Explain"),
    ],
)
def test_a_change_that_breaks_callers_is_found(tmp_path: Path, before: str, after: str, said: str) -> None:
    copy = tmp_path / "proto"
    shutil.copytree(ROOT / "proto", copy)
    path = copy / "serving" / "v1" / "recommender.proto"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    assert said in buf("breaking", "--against", str(ROOT / "proto" / "released.binpb"), proto=copy)
