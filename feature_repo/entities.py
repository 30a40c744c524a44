"""Entities: what a value can be known about."""

from feast import Entity
from feast.value_type import ValueType

from feature_repo import columns

user = Entity(name="user", join_keys=[columns.USER_ID], value_type=ValueType.STRING, description="A person who asks.")
poi = Entity(name="poi", join_keys=[columns.POI_ID], value_type=ValueType.STRING, description="A place, or an item.")
scenario = Entity(
    name="scenario",
    join_keys=[columns.SCENARIO_ID],
    value_type=ValueType.STRING,
    description="A business surface: home feed, search, a tab.",
)
scene_value = Entity(
    name="scene_value",
    join_keys=[columns.SCENE_VALUE],
    value_type=ValueType.STRING,
    description="One value of one scene feature, such as daypart=lunch.",
)
category = Entity(
    name="category",
    join_keys=[columns.CATEGORY_KEY],
    value_type=ValueType.STRING,
    description="A kind of POI, as a key of statistics.",
)
specialty = Entity(
    name="specialty",
    join_keys=[columns.SPECIALTY_KEY],
    value_type=ValueType.STRING,
    description="The finest kind of a POI, as a key of statistics.",
)
daypart = Entity(
    name="daypart",
    join_keys=[columns.DAYPART_KEY],
    value_type=ValueType.STRING,
    description="A part of the day, as a key of statistics.",
)
