"""Views of knowledge: vectors that a language model made of texts, and of prompts about users and scenarios.

`trainers.language.embed` writes the first kind, `trainers.language.prompted` the second, which is there only where
somebody ran it. `<space>_row` is the vector's row in the matrix of its version: training pulls carry the row, not the
vector.
"""

from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field
from feast.types import Array, Float32, Int64, String

from feature_repo import columns, entities, sources

# A snapshot serves until the next one; longer than a month without one is no longer knowledge of today's user.
SNAPSHOT_TTL = timedelta(weeks=5)


def _knowledge_view(space: str, entity: Entity, description: str) -> FeatureView:
    return _view(space, entity, timedelta(0), (), description, {})


def _prompted_view(space: str, entity: Entity, description: str) -> FeatureView | None:
    """None where no language model was asked."""
    if not _path(space).exists():
        return None
    said = (columns.TEXT, columns.WORDS, columns.TOLD)
    return _view(space, entity, SNAPSHOT_TTL, said, description, {columns.FRESH_WITHIN: "8d"})


def _view(
    space: str, entity: Entity, ttl: timedelta, said: tuple[str, ...], description: str, tags: dict[str, str]
) -> FeatureView:
    """
    Args:
        said: fields in words, beside the vector.
    """
    return FeatureView(
        name=space,
        entities=[entity],
        ttl=ttl,
        schema=[
            Field(name=columns.knowledge(space, columns.ROW), dtype=Int64),
            Field(name=columns.knowledge(space, columns.VERSION), dtype=String),
            Field(name=columns.knowledge(space, columns.TEXT_HASH), dtype=String),
            *(Field(name=columns.knowledge(space, field), dtype=String) for field in said),
            Field(
                name=columns.knowledge(space, columns.VECTOR),
                dtype=Array(Float32),
                vector_index=True,
                vector_length=_width(space),
                vector_search_metric="COSINE",
            ),
        ],
        source=sources.knowledge(space),
        description=description,
        tags=tags,
    )


def _path(space: str) -> Path:
    return sources.WORKSPACE.knowledge / f"{space}.parquet"


def _width(space: str) -> int:
    """The length of the vectors at hand; 0 before anything was embedded."""
    path = _path(space)
    if not path.exists():
        return 0
    first = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=[columns.knowledge(space, columns.VECTOR)]))
    return len(first.column(0)[0])


poi_text = _knowledge_view("poi_text", entities.poi, "What the POI's description means.")
user_text = _knowledge_view("user_text", entities.user, "What the user's description means.")
scenario_text = _knowledge_view("scenario_text", entities.scenario, "What the scenario's description means.")
scene_text = _knowledge_view("scene_text", entities.scene_value, "What the sentence of a scene value means.")
user_knowledge = _prompted_view(
    "user_knowledge", entities.user, "What a language model makes of all that the user did in all scenarios so far."
)
scenario_knowledge = _prompted_view(
    "scenario_knowledge", entities.scenario, "What a language model makes of the scenario, compared with the others."
)
