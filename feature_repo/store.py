"""The Feast store of a workspace: one `feature_store.yaml` rendered from a profile, applied from the definitions."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from feature_repo import columns
from feature_repo.workspace import REPOSITORY, Workspace, active

EMBEDDED = "embedded"
PROJECT_VARIABLE = "SCENERANK_PROJECT"  # the workspace's name in registries and online stores; else that of its folder


def profiles() -> dict[str, Path]:
    """The store configurations at hand: the embedded one and every file of `profiles/`."""
    others = {path.stem: path for path in sorted((REPOSITORY / "profiles").glob("*.yaml"))}
    return {EMBEDDED: REPOSITORY / "feature_store.yaml", **others}


def render(workspace: Workspace, profile: str = EMBEDDED) -> Path:
    """Write the workspace's own `feature_store.yaml`: the profile with its project and paths in this workspace.

    Raises ValueError for an unknown profile, naming the known ones, and for variables of its that are not set.
    """
    return _written(_config(workspace, profile), workspace.feature_store_yaml)


def _config(workspace: Workspace, profile: str) -> dict[str, Any]:
    known = profiles()
    if profile not in known:
        raise ValueError(f"no store profile {profile!r}; there are {', '.join(known)}")
    text = known[profile].read_text()
    if unset := sorted({name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ}):
        raise ValueError(f"the store profile {profile!r} takes {', '.join(unset)} from the environment: set them first")
    config: dict[str, Any] = yaml.safe_load(text)
    config["project"] = os.environ.get(PROJECT_VARIABLE) or workspace.root.name.replace("-", "_")
    if _own_registry(config):
        config["registry"]["path"] = f"sqlite:///{workspace.root / 'registry.db'}"
    if "path" in config["online_store"]:
        config["online_store"]["path"] = str(workspace.root / "online.db")
    return config


def _written(config: Mapping[str, Any], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def _own_registry(config: Mapping[str, Any]) -> bool:
    """Whether the registry is a file of the workspace, and not a database that others may use too."""
    return bool(config["registry"]["path"].startswith("sqlite:///"))


def open_store(workspace: Workspace) -> Any:
    """The workspace's `feast.FeatureStore`. Raises FileNotFoundError before `scenerank apply`."""
    from feast import FeatureStore

    if not workspace.feature_store_yaml.exists():
        raise FileNotFoundError(f"{workspace.feature_store_yaml} is not there: run `scenerank apply` first")
    return FeatureStore(fs_yaml_file=workspace.feature_store_yaml)


def apply(workspace: Workspace, profile: str = EMBEDDED) -> Any:
    """Register every definition; services of older bundles stay. Returns the store.

    Raises ValueError for an unknown profile, and where a shared registry has another workspace under this one's name.
    """
    config = _config(workspace, profile)
    if not _own_registry(config):
        _refuse_name_of_another(config)
    _written(config, workspace.feature_store_yaml)
    store = open_store(workspace)
    store.apply(declared(), partial=True)
    return store


def _refuse_name_of_another(config: Mapping[str, Any]) -> None:
    """Two workspaces of one name would overwrite each other's definitions and online values."""
    from feast import FeatureStore

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(fs_yaml_file=_written(config, Path(folder) / "feature_store.yaml"))
        sources = store.registry.list_data_sources(store.project, allow_cache=False)
    root = active().root  # whose tables the definitions read
    files = [Path(path) for source in sources if (path := getattr(source, "path", None))]
    if files and not any(root in file.parents for file in files):  # some may lie elsewhere, all of them do not
        (other, _), *_ = Counter(file.parent for file in files).most_common()
        raise ValueError(
            f"the registry has a project {store.project!r} already, of another workspace, whose tables are in "
            f"{other} and not below {root}: give this one a name of its own by {PROJECT_VARIABLE}"
        )


def declared() -> list[Any]:
    """What the active data set has of `definitions`; a request source is registered with the view that reads it."""
    from feature_repo import definitions

    named = (getattr(definitions, name) for name in definitions.__all__ if name != "request")
    return [found for found in named if found is not None]


def online_views(store: Any) -> list[str]:
    """The names of the views that the online store serves, in alphabetical order."""
    return sorted(view.name for view in store.list_batch_feature_views() if view.online)


def view_of(store: Any, space: str, version: str) -> str:
    """The view that holds a version of knowledge: its own where it stands beside the one in use."""
    own = columns.beside(space, version)
    return own if own in online_views(store) else space


def drop(store: Any, views: Sequence[str]) -> None:
    """Take some views out of the registry, where they are there, and their values out of the online store."""
    there = [view for view in store.list_batch_feature_views() if view.name in views]
    store.apply([], objects_to_delete=there, partial=False)


def empty(store: Any, name: str) -> None:
    """Take every value of one view out of the online store; the view stays."""
    online, view = store._get_provider().online_store, store.get_feature_view(name)
    for delete, keep in (([view], []), ([], [view])):
        online.update(store.config, delete, keep, [], [], True)


def tear_down(store: Any) -> None:
    """Remove every online value; the registry stays."""
    store._get_provider().teardown_infra(store.project, store.list_batch_feature_views(), store.list_entities())
