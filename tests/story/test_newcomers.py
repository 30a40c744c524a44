"""A word that nobody said before and a place of today get their vectors while the server runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.workspace import Workspace
from serving import demo
from serving.client import Access, Asker, Recommender
from serving.newcomers import Newcomers
from serving.opening import open_pipeline
from serving.pipeline import Ranking
from serving.request import Place, RankRequest, RequestContext
from serving.v1 import recommender_pb2 as pb
from trainers import wanted

PATIENT = Access(timeout_seconds=60.0)
PLACE = "opened today"


def test_what_has_no_vector_is_listed_and_right_after_the_next_embedding_run(project: Any, tiny_model: Path) -> None:
    workspace = project.workspace
    embed = ("embed", "--language-model", str(tiny_model))
    city = ("data", "city", "--users", "20", "--days", "14", "--pois", "30")
    project.verbs(city, embed, ("apply",), ("train", "--model", "larr", "--recipe", "tiny"), ("materialize",))
    moment = demo.last_moment(workspace)
    asker = replace(moment.asker, scene={**moment.asker.scene, "weather": "hail"})
    poi_ids = [*moment.poi_ids, PLACE]

    with project.served("--bundle", "larr", "--unproven") as served, Recommender(served.address, PATIENT) as client:
        stranger = client.rank(asker, poi_ids)
        assert not has_vector(stranger)
        assert within(lambda: wanted.read(workspace, "scene_text")) == {"weather=hail": stranger_time(asker)}
        assert wanted.read(workspace, "poi_text") == {}  # of a place that the store does not know nothing can be read

        put_place(workspace)
        project.verbs(("materialize",))
        unread = within(lambda: there if knows_all(there := client.rank(asker, poi_ids)) else None)
        assert set(within(lambda: wanted.read(workspace, "poi_text"))) == {PLACE}
        said = project.verbs(("knowledge", "status"))
        assert wanted_in(said, "poi_text") == wanted_in(said, "scene_text") == 1

        project.verbs(embed, ("materialize",))
        fresh = answer_of_a_fresh_start(workspace, asker, poi_ids)

        def the_same() -> pb.Ranking | None:
            read = client.rank(asker, poi_ids)
            scores = np.array(read.scores, np.float32)
            return read if tuple(read.poi_ids) == fresh.poi_ids and np.array_equal(scores, fresh.scores) else None

        # Two spaces are taken up and values of places read again, each in its time; then it is the same bit by bit.
        read = within(the_same)
        assert has_vector(read)
        assert score_of(read, PLACE) != score_of(unread, PLACE)
        said = project.verbs(("knowledge", "status"))
        assert wanted_in(said, "poi_text") == wanted_in(said, "scene_text") == 0


def answer_of_a_fresh_start(workspace: Workspace, asker: Asker, poi_ids: list[str]) -> Ranking:
    """What a server that starts now says once it has looked for new vectors."""
    pipeline = open_pipeline(workspace, workspace.bundles / "larr", None, unproven=True)
    (newcomers,) = [keeper for keeper in pipeline._keepers if isinstance(keeper, Newcomers)]
    newcomers.look()
    context = RequestContext(
        user_id=asker.user_id,
        scenario_id=asker.scenario_id,
        time_us=stranger_time(asker),
        place=None if asker.place is None else Place(*asker.place),
        scene_inputs=asker.scene,
    )
    return pipeline.rank(RankRequest(context=context, poi_ids=tuple(poi_ids)))


def stranger_time(asker: Asker) -> int:
    assert asker.time is not None
    return int(asker.time.timestamp() * 1_000_000)


def knows_all(ranked: pb.Ranking) -> bool:
    """Whether the server has read every place, the new one with them, since it is in the store."""
    return set(ranked.poi_statuses) == {pb.VALUE_STATUS_PRESENT}


def has_vector(ranked: pb.Ranking) -> bool:
    (aspect,) = [a for a in ranked.scene if a.feature == "weather"]
    assert aspect.value == "hail" and not aspect.known
    return aspect.has_vector


def score_of(ranked: pb.Ranking, poi_id: str) -> float:
    return ranked.scores[list(ranked.poi_ids).index(poi_id)]


def within(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What is found, as soon as there is something."""
    end = time.monotonic() + seconds
    while not (there := found()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.2)
    return there


def wanted_in(printed: str, space: str) -> int:
    """The last cell of the space's line."""
    line = next(line for line in printed.splitlines() if space in line)
    last = line.replace("│", " ").split()[-1]
    return int(last) if last.isdigit() else 0


def put_place(workspace: Any) -> None:
    """One more row of the table of places: a copy of the first one under another name and text."""
    path = workspace.source("pois")
    pois = pq.read_table(path)
    row = pois.slice(0, 1).to_pylist()[0] | {columns.POI_ID: PLACE, columns.TEXT: "A kiosk that sells pickled herring."}
    pq.write_table(pa.concat_tables([pois, pa.Table.from_pylist([row], pois.schema)]), path)
