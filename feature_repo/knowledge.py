"""Views of knowledge: vectors that a language model made of texts, and of prompts about users and scenarios.

`trainers.language.embed` writes the first kind, `trainers.language.prompted` the second, which is there only where
somebody ran it. `<space>_row` is the vector's row in the matrix of its version: training pulls carry the row, not the
vector. A version that is served beside the one in use has a view of its own.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
from feast import FeatureView, Field
from feast.types import Array, Float32, Int64, String

from feature_repo import columns, entities, sources

# A snapshot serves until the next one; longer than a month without one is no longer knowledge of today's user.
SNAPSHOT_TTL = timedelta(weeks=5)
ENTITIES = {
    columns.POI_ID: entities.poi,
    columns.USER_ID: entities.user,
    columns.SCENARIO_ID: entities.scenario,
    columns.SCENE_VALUE: entities.scene_value,
}
DESCRIPTIONS = {
    "poi_text": "What the POI's description means.",
    "user_text": "What the user's description means.",
    "scenario_text": "What the scenario's description means.",
    "scene_text": "What the sentence of a scene value means.",
    "user_knowledge": "What a language model makes of all that the user did in all scenarios so far.",
    "scenario_knowledge": "What a language model makes of the scenario, compared with the others.",
}


def _view(name: str, space: str, source: sources.ParquetSource) -> FeatureView:
    """The view of one version: the one in use is called as its space."""
    prompted = space in columns.PROMPTED
    said = (columns.TEXT, columns.WORDS, columns.TOLD) if prompted else ()
    return FeatureView(
        name=name,
        entities=[ENTITIES[columns.SPACES[space]]],
        ttl=SNAPSHOT_TTL if prompted else timedelta(0),
        schema=[
            Field(name=columns.knowledge(space, columns.ROW), dtype=Int64),
            Field(name=columns.knowledge(space, columns.VERSION), dtype=String),
            Field(name=columns.knowledge(space, columns.TEXT_HASH), dtype=String),
            *(Field(name=columns.knowledge(space, field), dtype=String) for field in said),
            Field(
                name=columns.knowledge(space, columns.VECTOR),
                dtype=Array(Float32),
                vector_index=True,
                vector_length=_width(space, Path(source.path)),
                vector_search_metric="COSINE",
            ),
        ],
        source=source,
        description=DESCRIPTIONS[space],
        tags={columns.FRESH_WITHIN: "8d"} if prompted else {},
    )


def _width(space: str, path: Path) -> int:
    """The length of the vectors at hand; 0 before anything was embedded."""
    if not path.exists():
        return 0
    first = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=[columns.knowledge(space, columns.VECTOR)]))
    return len(first.column(0)[0])


def _in_use(space: str) -> FeatureView:
    return _view(space, space, sources.knowledge(space))


def _prompted(space: str) -> FeatureView | None:
    """None where no language model was asked."""
    return _in_use(space) if Path(sources.knowledge(space).path).exists() else None


def _beside() -> Iterator[FeatureView]:
    """Versions that go on being served beside those in use, for bundles that were trained on them."""
    for path in sorted(sources.WORKSPACE.beside.glob("*.parquet")):
        space = next(space for space in columns.SPACES if path.stem.startswith(columns.beside(space, "")))
        yield _view(path.stem, space, sources.knowledge_beside(path.stem))


poi_text = _in_use("poi_text")
user_text = _in_use("user_text")
scenario_text = _in_use("scenario_text")
scene_text = _in_use("scene_text")
user_knowledge = _prompted("user_knowledge")
scenario_knowledge = _prompted("scenario_knowledge")
beside = tuple(_beside())
