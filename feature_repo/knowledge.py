"""Views of knowledge: vectors that a language model made of texts, written by `trainers.language.embed`.

`<space>_row` is the vector's row in the matrix of its version: training pulls carry the row, not the vector.
"""

from datetime import timedelta

import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field
from feast.types import Array, Float32, Int64, String

from feature_repo import columns, entities, sources


def _knowledge_view(space: str, entity: Entity, description: str) -> FeatureView:
    return FeatureView(
        name=space,
        entities=[entity],
        ttl=timedelta(0),
        schema=[
            Field(name=columns.knowledge(space, columns.ROW), dtype=Int64),
            Field(name=columns.knowledge(space, columns.VERSION), dtype=String),
            Field(name=columns.knowledge(space, columns.TEXT_HASH), dtype=String),
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
    )


def _width(space: str) -> int:
    """The length of the vectors at hand; 0 before anything was embedded."""
    path = sources.WORKSPACE.knowledge / f"{space}.parquet"
    if not path.exists():
        return 0
    first = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=[columns.knowledge(space, columns.VECTOR)]))
    return len(first.column(0)[0])


poi_text = _knowledge_view("poi_text", entities.poi, "What the POI's description means.")
user_text = _knowledge_view("user_text", entities.user, "What the user's description means.")
scenario_text = _knowledge_view("scenario_text", entities.scenario, "What the scenario's description means.")
scene_text = _knowledge_view("scene_text", entities.scene_value, "What the sentence of a scene value means.")
