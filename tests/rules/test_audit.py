"""The audit of dependencies finds what is known, tells what it could not look at, and fails for findings alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

KNOWN = {"name": "aged", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": []}]}
CLEAN = {"name": "good", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI and could not be audited: own (0.1)"}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([CLEAN, KNOWN, UNKNOWN], 1, "aged 1.0: PYSEC-1, fixed in 1.1\n2 of 3 packages audited\n"),
        ([CLEAN, UNKNOWN], 0, "1 of 2 packages audited\n"),
        ([UNKNOWN], 0, "0 of 1 packages audited: no advisories can be reached\n"),
        (None, 0, "no advisories can be reached, nothing was audited: no route to host\n"),
    ],
)
def test_what_an_audit_found_decides(tmp_path: Path, packages: object, status: int, said: str) -> None:
    """A program of the same name gives pip-audit's answers, which this machine may have no network for."""
    answer = "raise SystemExit('no route to host')"
    if packages is not None:
        answer = f"print({json.dumps(json.dumps({'dependencies': packages, 'fixes': []}))})"
    (tmp_path / "pip_audit.py").write_text(answer)
    command = [sys.executable, str(ROOT / ".ci" / "audit"), "site-packages"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, said), done.stderr
