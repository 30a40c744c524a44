"""The committed stubs are what the committed proto says."""

from __future__ import annotations

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
