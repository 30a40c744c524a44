"""The on-demand view of the scene: values computed from the request and the user's state by `scenes.evaluate`."""

import pandas as pd
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from feature_repo import columns, scenes, sources
from feature_repo.users import user_state

_DTYPES = {"string": String, "float": Float64}

request = RequestSource(
    name="request",
    schema=[
        Field(name=scenes.EVENT_TIME_US, dtype=Int64),
        *(Field(name=f.name, dtype=_DTYPES[f.dtype]) for f in sources.SCHEMA.request_fields),
    ],
    description="What a request says about its moment.",
)


@on_demand_feature_view(  # type: ignore[untyped-decorator]  # Feast has no types
    sources=[request, user_state],
    schema=[Field(name=columns.scene(f.name), dtype=String) for f in scenes.features_of(sources.SCHEMA)],
    mode="pandas",
    description="The scene of a request, a word for each scene feature.",
)
def scene(inputs: pd.DataFrame) -> pd.DataFrame:
    # Feast runs this body from its source text, so everything it names is imported here.
    import pandas as pd

    from feature_repo import scenes, sources

    values = scenes.evaluate({str(name): list(inputs[name]) for name in inputs.columns}, sources.SCHEMA)
    return pd.DataFrame(values, index=inputs.index, dtype="object")
