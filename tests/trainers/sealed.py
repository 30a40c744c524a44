"""Artefacts that were changed, with hashes that are right again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers import bundle as bundles
from trainers import index as indexes
from trainers.bundle import BundleError
from trainers.index import IndexArtefactError

MANIFEST = "manifest.json"


def seal(folder: Path, edit: Callable[[dict], None] = lambda manifest: None) -> None:
    """Write a manifest whose hashes are those of the folder's files, as whoever made them would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(manifest)
    said = {name: value for name, value in manifest.items() if name != "version"}
    if folder.name == "bundle":
        said["version"] = ""
    text = json.dumps(said, sort_keys=True, ensure_ascii=False)
    manifest["version"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def refused(folder: Path, reason: str) -> None:
    if folder.name == "bundle":
        with pytest.raises(BundleError, match=reason):
            bundles.load(folder)
    else:
        with pytest.raises(IndexArtefactError, match=reason):
            indexes.load(folder)


def put(manifest: dict, path: str, value: object) -> None:
    *way, last = path.split(".")
    for name in way:
        manifest = manifest[name]
    manifest[last] = value
