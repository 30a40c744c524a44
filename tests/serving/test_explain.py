"""What is said to have moved a score did: planted effects, two scores each, and the requests that lack the cause."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import fields, replace
from datetime import timedelta

import grpc
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from feature_repo import columns, scenes
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from serving.client import AsyncRecommender, Recommender, Wish, violations
from serving.explain import CauseKind, CauseLevel, KnowledgeTexts, ablated, causes_of
from serving.features import FeatureReader
from serving.opening import open_pipeline
from serving.pipeline import Pipeline
from serving.request import ExplainRequest, Objective, Place, RequestContext
from serving.scorer import Scorer
from serving.server import ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb
from trainers import bundle as bundles
from trainers.batch import Batch
from trainers.knowledge import POI_SPACE
from trainers.models.ranker import Scores


@pytest.fixture
def context(moment):
    return RequestContext(
        user_id="u3",
        scenario_id="lunch_deals",
        time_us=int(pd.Timestamp(moment).value // 1000),
        place=Place(60.17, 24.94),
        scene_inputs={"weather": "rain", "temperature": 7.0},
    )


@pytest.fixture(params=["larr", "ple"])
def bundle(request, workspace):
    return bundles.load(workspace.bundles / request.param)


def row_of(workspace, bundle, context, poi_id):
    reader = FeatureReader(open_store(workspace), bundle)
    return reader.read_pois(reader.read_context(context, context.time_us), [poi_id]).table


def without(table, *names):
    return ablated(table, [_Named(names)]).slice(1, 1)


class _Named:
    def __init__(self, names):
        self.columns = names


@pytest.mark.parametrize("user_id", ["u3", "u17", "nobody"])
@pytest.mark.parametrize("poi", [0, 5, None])
def test_all_that_a_ranker_reads_is_somebodys_cause(workspace, bundle, context, poi_ids, user_id, poi):
    poi_id = "nowhere" if poi is None else poi_ids[poi]
    table = row_of(workspace, bundle, replace(context, user_id=user_id), poi_id)
    causes = list(causes_of(table, bundle, None))
    named = [name for cause in causes for name in cause.columns]
    assert len(named) == len(set(named))
    stripped = Batch.from_arrow(without(table, *named), bundle.encoding)
    given = (columns.SCENARIO_ID, scenes.EVENT_TIME_US)
    nothing = Batch.from_arrow(without(table, *set(table.column_names).difference(given)), bundle.encoding)
    for field in fields(Batch):
        ours, theirs = getattr(stripped, field.name), getattr(nothing, field.name)
        assert ours is theirs is None or torch.equal(ours, theirs), field.name
    assert stripped.categorical_BF[0, 0] > 0 and not stripped.categorical_BF[0, 1:].any()
    for cause in causes:
        there = [name for name in cause.columns if name in table.column_names]
        assert any(table[name].null_count == 0 for name in there), "what is missing is no cause"


def test_each_effect_is_the_difference_of_two_scores(workspace, bundle, context, poi_ids):
    scorer = Scorer(bundle)
    pipeline = Pipeline(FeatureReader(open_store(workspace), bundle), scorer)
    for objective, of in ((Objective.CLICK, "p_click"), (Objective.ORDER, "p_order")):
        answer = pipeline.explain(ExplainRequest(context=context, poi_id=poi_ids[2], objective=objective))
        table = row_of(workspace, bundle, context, poi_ids[2])
        alone = getattr(scorer.score(table), of)[0]
        assert answer.score == pytest.approx(alone, abs=1e-6)
        assert len(answer.causes) == len(answer.effects) > 20
        for cause, effect in zip(answer.causes, answer.effects, strict=True):
            left = getattr(scorer.score(without(table, *cause.columns)), of)[0]
            assert effect == pytest.approx(float(alone) - float(left), abs=1e-6), cause.name
        assert np.abs(answer.effects).max() > 1e-4
        assert np.all(np.diff(np.abs(answer.effects)) <= 0)


class Planted(nn.Module):
    """click logit = -1 + 2 [weather is rain] - 3 [the POI has a vector] + 0.5 [the user clicked something lately]."""

    def __init__(self, encoding):
        super().__init__()
        self.scene = None
        self.slot = encoding.scene_features.index("weather")
        self.rain = 1 + encoding.vocabularies[columns.scene("weather")].values.index("rain")
        self.space = encoding.text_spaces.index(POI_SPACE)

    def vectors_known(self, space):
        return 10**6

    def forward(self, batch, scene_UC=None):
        rain = (batch.scene_id_US[batch.scene_of_row_B, self.slot] == self.rain).float()
        vector = (batch.text_row_BK[:, self.space] > 0).float()
        clicked = (batch.recent_age_BN > 0).any(dim=1).float()
        click = -1 + 2 * rain - 3 * vector + 0.5 * clicked
        return Scores(click_logit_B=click, conversion_logit_B=torch.zeros(len(batch)))


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def test_planted_effects_are_found_and_nothing_else(workspace, context, poi_ids):
    bundle = bundles.load(workspace.bundles / "larr")
    bundle = replace(bundle, ranker=Planted(bundle.encoding))
    pipeline = Pipeline(FeatureReader(open_store(workspace), bundle), Scorer(bundle))
    answer = pipeline.explain(ExplainRequest(context=context, poi_id=poi_ids[0]))
    assert answer.score == answer.p_click == pytest.approx(sigmoid(-1.5), abs=1e-7)
    assert answer.p_order == pytest.approx(sigmoid(-1.5) / 2, abs=1e-7)
    largest = [(cause.kind, cause.level, cause.name) for cause in answer.causes[:3]]
    assert largest == [
        (CauseKind.KNOWLEDGE, CauseLevel.POI, "poi_text"),
        (CauseKind.SCENE_VALUE, CauseLevel.MOMENT, "weather"),
        (CauseKind.FEATURE, CauseLevel.USER, columns.RECENT_POIS),
    ]
    expected = [sigmoid(-1.5) - sigmoid(logit) for logit in (1.5, -3.5, -2.0)]
    assert answer.effects[:3] == pytest.approx(expected, abs=1e-6)
    assert not answer.effects[3:].any()
    assert pipeline.explain(ExplainRequest(context=context, poi_id=poi_ids[0], limit=2)).causes == answer.causes[:2]
    sun = replace(context, scene_inputs={"weather": "sun"})
    answer = pipeline.explain(ExplainRequest(context=sun, poi_id=poi_ids[0]))
    assert dict(zip([c.name for c in answer.causes], answer.effects, strict=True))["weather"] == 0


def effects_of(explanation: pb.Explanation) -> dict[str, float]:
    return {cause.name: cause.effect for cause in explanation.causes}


@pytest.mark.parametrize("objective", ["click", "order"])
@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("weather", lambda asker: replace(asker, scene={"temperature": 7.0})),
        ("temperature_band", lambda asker: replace(asker, scene={"weather": "rain"})),
        ("distance", lambda asker: replace(asker, place=None)),
    ],
)
def test_a_request_without_the_cause_has_the_score_without_its_effect(client, asker, poi_ids, cause, change, objective):
    wish = Wish(objective=objective)
    for poi_id in poi_ids[:4]:
        explanation = client.explain(asker, poi_id, wish)
        assert explanation.score == pytest.approx(client.rank(asker, [poi_id], wish).scores[0], abs=1e-7)
        left = client.rank(change(asker), [poi_id], wish).scores[0]
        effect = effects_of(explanation)[cause]
        assert effect == pytest.approx(explanation.score - left, abs=1e-6)
        assert abs(effect) < 1e-6 or np.sign(effect) == np.sign(explanation.score - left)
        assert cause not in effects_of(client.explain(change(asker), poi_id, wish))


def test_a_store_without_the_knowledge_gives_the_score_without_its_effect(
    workspace, client, asker, poi_ids, moment, tmp_path
):
    copy = Workspace(tmp_path / "city")
    subprocess.run(["cp", "-r", workspace.root, copy.root], check=True)
    copy.feature_store_yaml.write_text(copy.feature_store_yaml.read_text().replace(str(workspace.root), str(copy.root)))
    another = {
        columns.POI_ID: poi_ids[0],
        columns.knowledge(POI_SPACE, columns.ROW): 1,
        columns.knowledge(POI_SPACE, columns.VERSION): "another",
        columns.knowledge(POI_SPACE, columns.TEXT_HASH): "h",
        columns.knowledge(POI_SPACE, columns.VECTOR): [0.0] * 8,
        columns.EVENT_TIMESTAMP: moment + timedelta(seconds=1),
        columns.CREATED_TIMESTAMP: moment + timedelta(seconds=1),
    }
    open_store(copy).write_to_online_store(POI_SPACE, pd.DataFrame([another]))
    server = create_server(open_pipeline(copy, copy.bundles / "larr", None, unproven=True), ServerOptions())
    explanation = client.explain(asker, poi_ids[0])
    with Recommender(f"127.0.0.1:{server.port}") as unknowing:
        left = unknowing.rank(asker, [poi_ids[0]]).scores[0]
        assert POI_SPACE not in effects_of(unknowing.explain(asker, poi_ids[0]))
    server.stop()
    effect = effects_of(explanation)[POI_SPACE]
    assert abs(effect) > 1e-6 and effect == pytest.approx(explanation.score - left, abs=1e-6)


def test_an_explanation_says_what_a_person_can_read(client, workspace, asker, poi_ids, moment, pipeline):
    explanation = client.explain(asker, poi_ids[0])
    causes = {cause.name: cause for cause in explanation.causes}
    poi = pq.read_table(workspace.source("pois"), filters=[(columns.POI_ID, "=", poi_ids[0])]).to_pylist()[0]
    assert (explanation.poi_id, explanation.details.name) == (poi_ids[0], poi[columns.NAME])
    assert explanation.details.category == causes["category"].value == poi[columns.CATEGORY]
    weather, text = causes["weather"], causes["poi_text"]
    assert (weather.kind, weather.level) == (pb.CAUSE_KIND_SCENE_VALUE, pb.CAUSE_LEVEL_MOMENT)
    assert (weather.value, weather.text) == ("rain", "The weather outside: rain.")
    assert (text.kind, text.level, text.value) == (pb.CAUSE_KIND_KNOWLEDGE, pb.CAUSE_LEVEL_POI, "")
    assert text.text == poi[columns.TEXT]
    assert causes["user_text"].level == pb.CAUSE_LEVEL_USER
    assert causes["scenario_text"].level == causes["scenario_stats"].level == pb.CAUSE_LEVEL_SCENARIO
    assert causes["user_poi_stats"].level == causes["distance"].level == pb.CAUSE_LEVEL_USER_AND_POI
    assert causes["open_hours"].value in ("open now", "closed now")
    ranking = client.rank(asker, [poi_ids[0]])
    assert causes["distance"].value == f"{ranking.distance_km[0]:.2f} km"
    assert (explanation.p_click, explanation.p_order) == (ranking.p_click[0], ranking.p_order[0])
    assert (explanation.model, explanation.time, explanation.values) == (ranking.model, ranking.time, ranking.values)
    assert list(explanation.scene) == list(ranking.scene) and list(explanation.views) == list(ranking.views)
    counts = pq.read_table(workspace.source("poi_stats"), filters=[(columns.POI_ID, "=", poi_ids[0])])
    counts = counts.filter(pc.less_equal(counts[columns.EVENT_TIMESTAMP], pa.scalar(moment)))
    newest = counts.sort_by(columns.EVENT_TIMESTAMP).to_pylist()[-1]
    days = pipeline.bundle.schema.window_days[0]
    said = ", ".join(f"{count} {newest[columns.statistic('poi', count, days)]}" for count in columns.COUNTS)
    assert causes["poi_stats"].value.startswith(f"{days} days: {said}; ")


def test_who_is_unknown_has_no_causes_of_their_own(client, asker, poi_ids):
    stranger = client.explain(replace(asker, user_id="nobody"), poi_ids[0])
    assert stranger.user_status == pb.VALUE_STATUS_MISSING and stranger.poi_status == pb.VALUE_STATUS_PRESENT
    of_user = [cause.name for cause in stranger.causes if cause.level == pb.CAUSE_LEVEL_USER]
    assert of_user == [columns.USER_ID] and effects_of(stranger)[columns.USER_ID] == 0
    nowhere = client.explain(asker, "nowhere")
    assert nowhere.poi_status == pb.VALUE_STATUS_MISSING and not nowhere.details.name
    of_poi = [cause.name for cause in nowhere.causes if cause.level == pb.CAUSE_LEVEL_POI]
    assert of_poi == [columns.POI_ID] and effects_of(nowhere)[columns.POI_ID] == 0
    assert "distance" not in effects_of(nowhere)
    assert nowhere.score == pytest.approx(client.rank(asker, ["nowhere"]).scores[0], abs=1e-7)


def test_a_limit_keeps_the_largest(client, asker, poi_ids):
    every = client.explain(asker, poi_ids[0])
    sizes = [abs(cause.effect) for cause in every.causes]
    assert sizes == sorted(sizes, reverse=True)
    assert list(client.explain(asker, poi_ids[0], Wish(limit=3)).causes) == list(every.causes[:3])


def test_broken_rules_come_as_violations(client, asker):
    with pytest.raises(grpc.RpcError) as caught:
        client.explain(replace(asker, user_id=""), "", Wish(limit=1001))
    assert set(violations(caught.value)) == {"context.user_id", "poi_id", "limit"}


def test_the_asyncio_client_explains_too(running, client, asker, poi_ids):
    async def ask() -> pb.Explanation:
        async with AsyncRecommender(f"127.0.0.1:{running.port}") as recommender:
            return await recommender.explain(asker, poi_ids[0], Wish(limit=5))

    assert asyncio.run(ask()) == client.explain(asker, poi_ids[0], Wish(limit=5))


def test_texts_are_those_of_the_vectors_version(tmp_path):
    workspace = Workspace(tmp_path)
    space = "user_knowledge"
    texts = KnowledgeTexts(workspace, {space: "v1"})
    assert texts.of(space, 2) == ("", "")

    def write(path, version, words):
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {columns.ROW: [1, 2], columns.VERSION: [version] * 2, columns.TEXT: ["one", f"two of {version}"]}
        table |= {columns.WORDS: ["", "soup, tea"]} if words else {}
        pq.write_table(pa.table({columns.knowledge(space, name): values for name, values in table.items()}), path)

    write(workspace.knowledge / f"{space}.parquet", "v1", True)
    assert texts.of(space, 2) == ("two of v1", "soup, tea")
    assert texts.of(space, 1) == ("one", "") and texts.of(space, 3) == ("", "")
    write(workspace.knowledge / f"{space}.parquet", "v2", True)
    assert texts.of(space, 2) == ("", "")
    write(workspace.beside / f"{columns.beside(space, 'v1')}.parquet", "v1", False)
    assert texts.of(space, 2) == ("two of v1", "")


def test_the_verb_shows_a_bar_for_each_cause(workspace, running, scenerank, poi_ids):
    address = f"127.0.0.1:{running.port}"
    done = scenerank("explain", "--address", address, "--workspace", workspace.root, "--limit", "4", poi_ids[0])
    assert done.exit_code == 0, done.output
    assert "score" in done.words and done.output.count("█") >= 12 and "cause" in done.words
    best = scenerank("explain", "--address", address, "--workspace", workspace.root, "--scene", "weather=rain")
    assert best.exit_code == 0 and "scene: daypart" in best.words and "weather rain" in best.words
    wrong = scenerank("explain", "--address", address, "--workspace", workspace.root, "--scene", "moon=full")
    assert wrong.exit_code == 2 and "is no request field" in wrong.words
