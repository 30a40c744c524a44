"""Every column, entity key and feature name of SceneRank, once: nothing else in the code spells them.

Names are the field's standard terms. A *scene* is the real-time context of one request, a *scenario* is a business
surface; the two words are never exchanged.
"""

from __future__ import annotations

# Keys. External ids are strings at the edge; they become dense integers inside a Batch only.
USER_ID = "user_id"
POI_ID = "poi_id"
SCENARIO_ID = "scenario_id"
SCENE_VALUE = "scene_value"
REQUEST_ID = "request_id"
ROW_ID = "row_id"

# Time. `event_timestamp`: when the fact happened. `created_timestamp`: when it could be known (available_at).
EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"
OUTCOME_TIMESTAMP = "outcome_timestamp"
LOCAL_TIME = "local_time"
# Tag of a view: its newest value is to be no older than this, in the words of pandas (`26h`, `8d`).
FRESH_WITHIN = "fresh_within"

# Impressions.
POSITION = "position"
PROPENSITY = "propensity"
CLICK = "click"
ORDER = "order"
LATITUDE = "latitude"
LONGITUDE = "longitude"
LABELS = (CLICK, ORDER)

# POIs. `category` is the coarse kind (cuisine), `specialty` the finest word for what is offered (a dish, a tag).
NAME = "name"
TEXT = "text"
CATEGORY = "category"
SPECIALTY = "specialty"
OPEN_HOURS = "open_hours"
SHOWN_IN = "shown_in"  # the scenarios that may show a POI; null: every one
POI_LATITUDE = "poi_latitude"
POI_LONGITUDE = "poi_longitude"

# The user's recent behaviour, newest first, as a list of POIs with the time of each click.
RECENT_POIS = "recent_pois"
RECENT_TIMES = "recent_times_us"
LAST_CATEGORY = "last_category"
LAST_SPECIALTY = "last_specialty"
LAST_ORDER_TIME = "last_order_us"
RECENT_LENGTH = 20

# Keys of statistics that a pull derives from the POI and from the clock; not features themselves.
CATEGORY_KEY = "category_key"
SPECIALTY_KEY = "specialty_key"
DAYPART_KEY = "daypart_key"

# Names that a dataset's own columns cannot have, in whatever table: pulls bring all tables together.
RESERVED = frozenset(
    {
        *(USER_ID, POI_ID, SCENARIO_ID, SCENE_VALUE, REQUEST_ID, ROW_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP),
        *(OUTCOME_TIMESTAMP, LOCAL_TIME, POSITION, PROPENSITY, CLICK, ORDER, LATITUDE, LONGITUDE, NAME, TEXT, CATEGORY),
        *(SPECIALTY, OPEN_HOURS, SHOWN_IN, POI_LATITUDE, POI_LONGITUDE, RECENT_POIS, RECENT_TIMES, LAST_CATEGORY),
        *(LAST_SPECIALTY, LAST_ORDER_TIME, CATEGORY_KEY, SPECIALTY_KEY, DAYPART_KEY, "event_time_us"),
    }
)

# Behaviour statistics: counts of these, under these keys. A dataset says which it keeps, and in which windows of days
# (`Schema.statistics`, `Schema.window_days`); these are the usual ones.
COUNTS = ("impressions", "clicks", "orders")
WINDOW_DAYS = (7, 28)
STATISTICS: dict[str, tuple[str, ...]] = {
    "user": (USER_ID,),
    "poi": (POI_ID,),
    "scenario": (SCENARIO_ID,),
    "user_poi": (USER_ID, POI_ID),
    "user_category": (USER_ID, CATEGORY_KEY),
    "poi_daypart": (POI_ID, DAYPART_KEY),
    "user_specialty": (USER_ID, SPECIALTY_KEY),
    "user_poi_daypart": (USER_ID, POI_ID, DAYPART_KEY),
}
# How strongly people who go to the same places speak for a POI (`feature_repo.like_minded`).
LIKE_MINDED = "like_minded_score"
USUAL_STATISTICS = ("user", "poi", "scenario", "user_poi", "user_category", "poi_daypart")

# Knowledge: one vector space per kind of text; a pull carries the row of a matrix, not the vector.
KNOWLEDGE: dict[str, str] = {
    "poi_text": POI_ID,
    "user_text": USER_ID,
    "scenario_text": SCENARIO_ID,
    "scene_text": SCENE_VALUE,
}
# Prompted knowledge: what a language model says when it is told all that is known so far of a user or a scenario.
PROMPTED: dict[str, str] = {
    "user_knowledge": USER_ID,
    "scenario_knowledge": SCENARIO_ID,
}
SPACES = KNOWLEDGE | PROMPTED
VECTOR = "vector"
ROW = "row"
VERSION = "version"
TEXT_HASH = "text_hash"
COMPUTED_AT = "computed_at"
# Of prompted knowledge alone: all that the model was told, words that it finds apt, and what it freely said.
PROMPT = "prompt"
WORDS = "words"
TOLD = "told"


def statistic(owner: str, count: str, window_days: int) -> str:
    """The feature name of one behaviour count, such as `poi_clicks_7d`."""
    return f"{owner}_{count}_{window_days}d"


def scene(feature: str) -> str:
    """The column that holds the value of a scene feature, such as `scene_daypart`."""
    return f"scene_{feature}"


def scene_row(feature: str) -> str:
    """The column that holds the matrix row of a scene value's vector, such as `scene_daypart_row`."""
    return f"scene_{feature}_row"


def scene_value(feature: str, value: str) -> str:
    """The entity key of one scene value, such as `daypart=lunch`."""
    return f"{feature}={value}"


def feature_and_value(key: str) -> tuple[str, str]:
    """The other way round.

    >>> feature_and_value(scene_value("weather", "a=b"))
    ('weather', 'a=b')
    """
    feature, _, value = key.partition("=")
    return feature, value


def beside(space: str, version: str) -> str:
    """The view of a version of knowledge that stands beside the one in use, such as `poi_text_0d62c1a9e3f4`."""
    return f"{space}_{version}"


def knowledge(space: str, field: str) -> str:
    """The feature name of one field of a knowledge view, such as `poi_text_row`."""
    return f"{space}_{field}"
