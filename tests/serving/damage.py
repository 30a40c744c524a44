"""Copies of a workspace, and what can be wrong with their online store."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from feature_repo.workspace import Workspace


def copied(workspace: Workspace, root: Path) -> Workspace:
    """A workspace of its own with the same content."""
    copy = Workspace(root)
    # In another process: where one opens and closes a file of SQLite itself, it loses the locks that it has on it.
    subprocess.run(["cp", "-r", workspace.root, copy.root], check=True)
    text = copy.feature_store_yaml.read_text().replace(str(workspace.root), str(copy.root))
    copy.feature_store_yaml.write_text(text)
    return copy


def spoil_records(workspace: Workspace, view: str) -> None:
    """Records of one view in no known layout: a fault that no caller and no network explains."""
    with closing(sqlite3.connect(workspace.root / "online.db")) as db, db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name LIKE ?", (f"%:{view}",))]
        assert tables
        for table in tables:
            db.execute(f"UPDATE \"{table}\" SET record = x'{'ff' * 64}'")
