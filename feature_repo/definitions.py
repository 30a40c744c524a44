"""The one file that Feast reads: it re-exports every Feast object of this package (`.feastignore` hides the rest).

Views of statistics that the active dataset does not keep are None, and so is knowledge that nobody asked for. Versions
of knowledge that are served beside those in use come last, by the names of their views.
"""

from feature_repo.entities import category, daypart, poi, scenario, scene_value, specialty, user
from feature_repo.knowledge import (
    beside,
    poi_text,
    scenario_knowledge,
    scenario_text,
    scene_text,
    user_knowledge,
    user_text,
)
from feature_repo.on_demand import request, scene
from feature_repo.pois import poi_daypart_stats, poi_profile, poi_stats
from feature_repo.scenarios import scenario_stats
from feature_repo.services import larr, llm4msr, ple, ple_scene_ids
from feature_repo.users import (
    user_category_stats,
    user_like_minded,
    user_poi_daypart_stats,
    user_poi_stats,
    user_profile,
    user_specialty_stats,
    user_state,
    user_stats,
)

__all__ = [
    "category",
    "daypart",
    "larr",
    "llm4msr",
    "ple",
    "ple_scene_ids",
    "poi",
    "poi_daypart_stats",
    "poi_profile",
    "poi_stats",
    "poi_text",
    "request",
    "scenario",
    "scenario_knowledge",
    "scenario_stats",
    "scenario_text",
    "scene",
    "scene_text",
    "scene_value",
    "specialty",
    "user",
    "user_category_stats",
    "user_knowledge",
    "user_like_minded",
    "user_poi_daypart_stats",
    "user_poi_stats",
    "user_profile",
    "user_specialty_stats",
    "user_state",
    "user_stats",
    "user_text",
]
globals().update({view.name: view for view in beside})
__all__ += [view.name for view in beside]
