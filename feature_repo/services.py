"""FeatureServices: the input contract of each model, derived from the declarations.

A service's name is the model's plus a hash of everything it declares, so a new scene feature makes a new service and
bundles trained on the old one go on with theirs.
"""

import hashlib

from feast import FeatureService, FeatureView, LabelView, OnDemandFeatureView

from feature_repo import columns, knowledge, on_demand, pois, scenarios, scenes, sources, users

_BEHAVIOUR = [
    users.user_profile[list(sources.SCHEMA.user_attributes)] if sources.SCHEMA.user_attributes else None,
    users.user_state,
    users.user_stats,
    users.user_poi_stats,
    users.user_category_stats,
    users.user_specialty_stats,
    users.user_poi_daypart_stats,
    users.user_like_minded,
    pois.poi_profile,
    pois.poi_stats,
    pois.poi_daypart_stats,
    scenarios.scenario_stats,
]


def _rows_of(view: FeatureView) -> FeatureView:
    """What a model reads of a knowledge view: which vector, of which version."""
    return view[[columns.knowledge(view.name, columns.ROW), columns.knowledge(view.name, columns.VERSION)]]


_KNOWLEDGE = [_rows_of(view) for view in (knowledge.poi_text, knowledge.user_text, knowledge.scenario_text)]
_PROMPTED = [_rows_of(view) for view in (knowledge.user_knowledge, knowledge.scenario_knowledge) if view is not None]


def _service(model: str, views: list[FeatureView | OnDemandFeatureView | None], description: str) -> FeatureService:
    present: list[FeatureView | OnDemandFeatureView | LabelView | str] = [view for view in views if view is not None]
    service = FeatureService(name=model, features=present, description=description)
    fingerprints = [f.fingerprint() for f in scenes.features_of(sources.SCHEMA)] if on_demand.scene in views else []
    text = "\n".join([model, *feature_references(service), *fingerprints])
    service.name = f"{model}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return service


def feature_references(service: FeatureService) -> tuple[str, ...]:
    """`view:feature` of everything that a service holds, in order."""
    return tuple(f"{p.name}:{f.name}" for p in service.feature_view_projections for f in p.features)


ple = _service("ple", _BEHAVIOUR, "Ids, attributes and behaviour, no scene.")
ple_scene_ids = _service("ple_scene_ids", [*_BEHAVIOUR, on_demand.scene], "The same with scene values, as ids.")
larr = _service("larr", [*_BEHAVIOUR, on_demand.scene, *_KNOWLEDGE], "The same with what a language model knows.")
# There is no such service before a language model was asked about users and scenarios.
llm4msr = (
    _service(
        "llm4msr",
        [*_BEHAVIOUR, on_demand.scene, *_KNOWLEDGE, *_PROMPTED],
        "The same with what a language model makes of each user and each scenario.",
    )
    if len(_PROMPTED) == len(columns.PROMPTED)
    else None
)
