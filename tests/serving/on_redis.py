"""The workspace of the tests with its online values in a Redis, for servers in processes of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from feature_repo.workspace import Workspace
from tests.conftest import ROOT, Project


def on_redis(workspace: Workspace, root: Path, port: int, patch: pytest.MonkeyPatch) -> Project:
    """A copy of the workspace, applied and materialised there; the environment names the Redis until `patch` ends."""
    project = Project(ROOT, Workspace(root))
    for folder in (workspace.sources, workspace.knowledge, workspace.bundles):
        shutil.copytree(folder, root / folder.name)
    patch.setenv("SCENERANK_REDIS", f"127.0.0.1:{port}")
    project.verbs(("apply", "--profile", "redis"), ("materialize",))
    return project
