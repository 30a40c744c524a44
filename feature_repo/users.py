"""Views of users: who they are, what they did, what they did last."""

from datetime import timedelta

from feast import FeatureView, Field, PushSource
from feast.types import Array, Float64, Int64, String

from feature_repo import columns, entities, like_minded, sources
from feature_repo.aggregates import USER_STATE, USER_STATE_PUSH
from feature_repo.behaviour import kept_statistics_view, statistics_view

user_profile = FeatureView(
    name="user_profile",
    entities=[entities.user],
    ttl=timedelta(0),
    schema=[Field(name=name, dtype=String) for name in (columns.TEXT, *sources.SCHEMA.user_attributes)],
    source=sources.table("users"),
    description="Static attributes, from the user's first appearance on. Written by the dataset's loader.",
)

user_state = FeatureView(
    name=USER_STATE,
    entities=[entities.user],
    ttl=timedelta(days=28),
    schema=[
        Field(name=columns.RECENT_POIS, dtype=Array(String)),
        Field(name=columns.RECENT_TIMES, dtype=Array(Int64)),
        Field(name=columns.LAST_CATEGORY, dtype=String),
        Field(name=columns.LAST_SPECIALTY, dtype=String),
        Field(name=columns.LAST_ORDER_TIME, dtype=Int64),
    ],
    source=PushSource(name=USER_STATE_PUSH, batch_source=sources.table(USER_STATE)),
    description="What the user's last clicks left behind; changes with every click.",
    tags={columns.FRESH_WITHIN: "26h"},
)

user_stats = statistics_view("user", [entities.user], "How much the user saw, clicked and ordered.")
user_poi_stats = statistics_view("user_poi", [entities.user, entities.poi], "The same, with this POI.")
user_category_stats = statistics_view(
    "user_category", [entities.user, entities.category], "The same, in this category."
)
user_specialty_stats = kept_statistics_view(
    "user_specialty", [entities.user, entities.specialty], "The same, of this finest kind."
)
user_poi_daypart_stats = kept_statistics_view(
    "user_poi_daypart",
    [entities.user, entities.poi, entities.daypart],
    "The same, with this POI in this part of the day.",
)
user_like_minded = (
    FeatureView(
        name=like_minded.TABLE,
        entities=[entities.user, entities.poi],
        ttl=like_minded.WEEK,
        schema=[Field(name=columns.LIKE_MINDED, dtype=Float64)],
        source=sources.table(like_minded.TABLE),
        description="How strongly people who go to the same places speak for this POI; new every Monday.",
    )
    if sources.SCHEMA.like_minded
    else None
)
