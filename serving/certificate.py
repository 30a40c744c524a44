"""The certificate of a bundle: that its values are the same online and offline, and whether it still holds.

`prove` makes it, a server wants to see it before it takes the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from feature_repo.files import write_whole
from feature_repo.workspace import REPOSITORY
from serving.online import ServiceMismatch
from serving.stages import code_of
from trainers.bundle import CERTIFICATE, Bundle
from trainers.plain import PlainDataError, from_plain, to_plain

# Beside the definitions, stores and streams of `feature_repo`, what values pass through.
PATHS = (
    "serving/features.py",
    "serving/online.py",
    "serving/poi_cache.py",
    "serving/request.py",
    "trainers/knowledge.py",
    "trainers/rows.py",
    "trainers/training_set.py",
    "trainers/views_state.py",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One column that does not agree.

    Attributes:
        view: where its values come from; empty for what is computed from the request.
        rows: how many impressions differ. example: the first one, in words.
    """

    column: str
    view: str
    rows: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was proved of a bundle.

    Attributes:
        bundle: its version. code: hash of the sources of both paths.
        cases: how many requests were asked in which way. values: stored values by status.
        columns: how many were compared.
        served: rows of answers that a server really gave, among what was compared.
    """

    bundle: str
    service: str
    code: str
    date: str
    impressions: int
    requests: int
    cases: Mapping[str, int]
    values: Mapping[str, int]
    columns: int
    served: int
    differences: tuple[Difference, ...]

    @property
    def valid(self) -> bool:
        return not self.differences and self.impressions > 0

    def save(self, folder: Path) -> Path:
        """Write it into a bundle's folder, whole or not at all."""
        path = folder / CERTIFICATE
        write_whole(path, json.dumps(to_plain(self), indent=1, ensure_ascii=False) + "\n")
        return path


def code() -> str:
    """A hash of the sources of both paths: what one version proved says nothing of another."""
    definitions = sorted(f"{REPOSITORY.name}/{file.name}" for file in REPOSITORY.glob("*.py"))
    return code_of(*definitions, f"{REPOSITORY.name}/stores", f"{REPOSITORY.name}/streaming", *PATHS)


class Unproven(ServiceMismatch):
    """A bundle has no certificate that holds for it. The message says what to do."""


def check(folder: Path, bundle: Bundle) -> Certificate:
    """The folder's certificate. Raises Unproven unless it is of this bundle and this code, and says that all agrees."""
    remedy = f"run `scenerank prove --bundle {folder.name}`, or serve with --unproven"
    path = folder / CERTIFICATE
    if not path.is_file():
        raise Unproven(f"{folder} has no certificate that online and offline values agree: {remedy}")
    try:
        found = from_plain(Certificate, json.loads(path.read_text()))
    except (UnicodeDecodeError, json.JSONDecodeError, PlainDataError) as error:
        raise Unproven(f"{path}: damaged: {error}; {remedy}") from error
    if found.bundle != bundle.manifest.version:
        raise Unproven(f"{path} is of bundle {found.bundle}, not {bundle.manifest.version}: {remedy}")
    if found.code != (now := code()):
        raise Unproven(f"{path} was made by other code ({found.code}, this is {now}): {remedy}")
    if not found.valid:
        names = ", ".join(d.column for d in found.differences) or "nothing compared"
        raise Unproven(f"{path} says that online and offline values differ ({names}): {remedy}")
    return found
