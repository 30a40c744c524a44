"""Views of POIs: what they are, how people behave towards them."""

from datetime import timedelta

from feast import FeatureView, Field
from feast.types import Float64, String

from feature_repo import columns, entities, sources
from feature_repo.behaviour import statistics_view

_WORDS = (columns.NAME, columns.CATEGORY, columns.SPECIALTY, columns.OPEN_HOURS, *sources.SCHEMA.poi_attributes)

poi_profile = FeatureView(
    name="poi_profile",
    entities=[entities.poi],
    ttl=timedelta(0),
    schema=[
        *(Field(name=name, dtype=String) for name in _WORDS),
        Field(name=columns.POI_LATITUDE, dtype=Float64),
        Field(name=columns.POI_LONGITUDE, dtype=Float64),
    ],
    source=sources.table("pois"),
    description="Static attributes, from the POI's opening on. Written by the dataset's loader.",
)

poi_stats = statistics_view("poi", [entities.poi], "How often the POI was shown, clicked and ordered.")
poi_daypart_stats = statistics_view(
    "poi_daypart", [entities.poi, entities.daypart], "The same, in this part of the day."
)
