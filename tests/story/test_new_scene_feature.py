"""A new scene feature is one declaration in one file: everything else follows, and older bundles go on.

The change is made in a copy of the project, whose workspace is a copy of a city that was built before it.
"""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq

from feature_repo import columns
from serving import demo
from serving.client import Access, Recommender, Wish
from serving.opening import open_pipeline
from serving.pipeline import Pipeline
from serving.request import Place, RankRequest, RequestContext
from trainers import bundle as bundles

FUNCTION = """def month_half(local_time: datetime) -> str:
    return "first half" if local_time.day <= 15 else "second half"


"""
DECLARATION = """    SceneFeature(
        name="month_half", inputs=(columns.LOCAL_TIME,), value=month_half, sentence="It is the {value} of the month."
    ),
"""
TABLE = "FEATURES: tuple[SceneFeature, ...] = (\n"
PATIENT = Access(timeout_seconds=60.0)


def test_one_declaration_in_one_file_reaches_the_answer(city, project, tiny_model):
    workspace = project.workspace
    shutil.copytree(city.workspace.root, workspace.root)
    shutil.copytree(workspace.bundles / "larr", workspace.bundles / "before")
    scenes = project.root / "feature_repo" / "scenes.py"
    text = scenes.read_text()
    assert text.count(TABLE) == 1
    scenes.write_text(text.replace(TABLE, FUNCTION + TABLE + DECLARATION))

    before = pq.read_metadata(workspace.knowledge / "scene_text.parquet").num_rows
    project.verbs(
        ("embed", "--language-model", str(tiny_model)),
        ("apply",),
        ("materialize",),
        ("train", "--model", "larr", "--recipe", "tiny"),
        ("prove", "--bundle", "larr", "--impressions", "50"),
    )
    trained = bundles.load(workspace.bundles / "larr")
    older = bundles.load(workspace.bundles / "before")

    # The sentences have vectors, the training set has the column and its rows, the bundle has the slot.
    knowledge = pq.read_table(workspace.knowledge / "scene_text.parquet")
    halves = {v for v in knowledge[columns.SCENE_VALUE].to_pylist() if v.startswith("month_half=")}
    assert halves == {"month_half=first half", "month_half=second half"}
    assert len(knowledge) >= before + 2
    pulled = pq.read_table(sorted(workspace.training.glob(f"{trained.manifest.service}-*/part-*.parquet")))
    assert set(pulled[columns.scene("month_half")].to_pylist()) == {"first half", "second half"}
    assert min(pulled[columns.scene_row("month_half")].to_pylist()) > 0
    assert "month_half" in trained.encoding.scene_features
    assert "month_half" not in older.encoding.scene_features
    assert trained.manifest.service != older.manifest.service

    moment = demo.last_moment(workspace)  # the end of October
    wish = Wish(details=True)
    with project.served("--bundle", "larr") as served, Recommender(served.address, PATIENT) as recommender:
        answer = recommender.rank(moment.asker, moment.poi_ids, wish)
    (aspect,) = [a for a in answer.scene if a.feature == "month_half"]
    assert (aspect.value, aspect.known, aspect.has_vector) == ("second half", True, True)
    assert answer.model.service == trained.manifest.service

    # The older bundle goes on with its own service and gives the scores that it gave before the change.
    with (
        project.served("--bundle", "before", "--unproven") as served,
        Recommender(served.address, PATIENT) as recommender,
    ):
        again = recommender.rank(moment.asker, moment.poi_ids, wish)
    assert again.model.service == older.manifest.service
    assert dict(zip(again.poi_ids, again.p_click, strict=True)) == scores_before(city, moment)


def scores_before(city, moment) -> dict[str, float]:
    """What the unchanged code says of the same request."""
    pipeline: Pipeline = open_pipeline(city.workspace, city.workspace.bundles / "larr", None, unproven=True)
    asker = moment.asker
    assert asker.time is not None
    context = RequestContext(
        user_id=asker.user_id,
        scenario_id=asker.scenario_id,
        time_us=int(asker.time.timestamp() * 1e6),
        place=Place(*asker.place) if asker.place else None,
        scene_inputs=asker.scene,
    )
    ranking = pipeline.rank(RankRequest(context=context, poi_ids=moment.poi_ids))
    return {poi: float(np.float32(p)) for poi, p in zip(ranking.poi_ids, ranking.p_click, strict=True)}
