"""A Feast user's own repository on the ASOF store, in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feast import FeatureStore, RepoConfig

LOCAL = {"type": "local"}


def store_in(root: Path, project: str, online: Mapping[str, Any], engine: Mapping[str, Any] = LOCAL) -> FeatureStore:
    """Nothing is registered yet; `online` and `engine` as `feature_store.yaml` has them."""
    return FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{root}/registry.db"},
            offline_store={"type": "feature_repo.stores.asof.AsofOfflineStore"},
            online_store=dict(online),
            batch_engine=dict(engine),
            entity_key_serialization_version=3,
        )
    )
