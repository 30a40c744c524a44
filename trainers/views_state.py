"""How it is noticed that a view of a service changed: what is registered of it, and the files of its source."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from feature_repo.files import state_of


def views_state(store: Any, service: str) -> dict[str, Any]:
    """By view, what its values follow from, as JSON has it.

    Rows that change in a database, or in files of another machine, are not noticed.
    """
    return {
        projection.name: _of(store, store.registry.get_any_feature_view(projection.name, store.project))
        for projection in store.get_feature_service(service).feature_view_projections
    }


def _of(store: Any, view: Any) -> dict[str, Any]:
    features = {field.name: str(field.dtype) for field in view.features}
    if not hasattr(view, "batch_source"):  # computed from other views
        read = [projection.name for projection in view.source_feature_view_projections.values()]
        views = {name: _of(store, store.registry.get_any_feature_view(name, store.project)) for name in read}
        return {"features": features, "reads": views, "by": view.feature_transformation.udf_string}
    source = view.batch_source
    path = getattr(source, "path", None)
    return {
        "features": features,
        "keys": {field.name: str(field.dtype) for field in view.entity_columns},
        "ttl": None if view.ttl is None else view.ttl.total_seconds(),
        "renamed": dict(source.field_mapping),
        "times": [source.timestamp_field, source.created_timestamp_column],
        "source": path or source.get_table_query_string(),
        "files": _files(path, store.config.repo_path),
    }


def _files(path: str | None, repository: Path | None) -> dict[str, list[int]]:
    """Path -> size and time of the last change of each file of a source; of one elsewhere (`s3://`) nothing."""
    if not path or "://" in path:
        return {}
    whole = Path(repository or ".") / path
    if whole.is_dir():
        found = [file for file in whole.rglob("*") if file.is_file()]
    else:
        found = [Path(file) for file in glob.glob(str(whole))]
    return {str(file): state for file in sorted(found) for state in state_of([file]).values()}
