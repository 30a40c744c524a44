"""What a server really read, kept for a sample of its answers, against the later pull."""

from __future__ import annotations

import errno
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from serving import prove, stages
from serving.features import FeatureReader
from serving.pipeline import Pipeline
from serving.request import Place, RankRequest, RequestContext
from serving.scorer import Scorer
from serving.served import ServedLog, answers_of
from trainers import bundle as bundles
from trainers.bundle import Bundle

IMPRESSIONS = 40


@pytest.fixture(scope="module")
def bundle(city) -> Bundle:
    return bundles.load(city.workspace.bundles / "larr")


@pytest.fixture
def place(city, tmp_path) -> Workspace:
    """The city with an online store of its own, filled up to an hour before the log's end."""
    shutil.copytree(city.workspace.root, tmp_path / "city", ignore=shutil.ignore_patterns("online.db*", "training"))
    workspace = Workspace(tmp_path / "city")
    config = yaml.safe_load(workspace.feature_store_yaml.read_text())
    config["online_store"]["path"] = str(workspace.root / "online.db")
    workspace.feature_store_yaml.write_text(yaml.safe_dump(config))
    with stages.quiet():
        open_store(workspace).materialize(stages.BEGINNING, moment_of(workspace))
    return workspace


def moment_of(workspace: Workspace) -> Any:
    return Schema.load(workspace.schema).split.end - timedelta(hours=1)


def serve(place: Workspace, bundle: Bundle, share: float = 1.0, rows: int = 25) -> Pipeline:
    """Answer ten requests in the minute after the store was filled."""
    kept = ServedLog(place.served, share, bundle.manifest.version, bundle.schema, rows)
    pipeline = Pipeline(FeatureReader(open_store(place), bundle), Scorer(bundle), keepers=[kept])
    pois = pq.read_table(place.source("pois"))[columns.POI_ID].to_pylist()
    for number in range(10):
        context = RequestContext(
            user_id=f"u{number}",
            scenario_id="search",
            time_us=int(moment_of(place).timestamp() * 1e6) + number,
            place=Place(60.17, 24.94) if number % 2 else None,
            scene_inputs={"weather": "rain", "temperature": 3.0} if number % 3 else {},
        )
        pipeline.rank(RankRequest(context=context, poi_ids=[*pois[number : number + 5], "nowhere"]))
    return pipeline


def test_what_was_served_equals_the_later_pull(place, bundle):
    serve(place, bundle).close()
    assert len(list(place.served.glob("*.parquet"))) == 2, "a file when enough rows are there, and one at the end"
    assert len(prove.served_rows(place, bundle)) == 60
    certificate = prove.prove(place, open_store(place), bundle, IMPRESSIONS)
    assert certificate.valid and certificate.served == 60 and certificate.differences == ()


def test_a_certificate_is_made_again_when_more_was_served(place, bundle):
    def certificate() -> Any:
        return stages.prove(place, open_store(place), "larr", IMPRESSIONS, lambda *_: None)

    before = certificate()
    assert before.valid and before.served == 0
    serve(place, bundle).close()
    after = certificate()
    assert after.valid and after.served == 60
    assert certificate() == after, "and not without need"


def test_values_that_were_served_otherwise_are_named(place, bundle):
    store = open_store(place)
    log = pq.read_table(place.source("user_state"))
    last = log.filter(pc.is_in(log[columns.USER_ID], pa.array([f"u{n}" for n in range(10)]))).to_pandas().tail(1)
    last[columns.LAST_CATEGORY] = "never heard of"
    last[columns.EVENT_TIMESTAMP] = last[columns.CREATED_TIMESTAMP] = moment_of(place)
    store.write_to_online_store("user_state", last)
    serve(place, bundle).close()
    found = {d.column: d for d in prove.prove(place, store, bundle, IMPRESSIONS).differences}
    assert found[columns.LAST_CATEGORY].view == "user_state" and found[columns.LAST_CATEGORY].rows == 6
    assert "never heard of" in found[columns.LAST_CATEGORY].example


def test_answers_of_other_bundles_and_beyond_the_log_are_left_out(place, bundle):
    pipeline = serve(place, bundle)
    beyond = RequestContext(
        user_id="u1", scenario_id="search", time_us=int(moment_of(place).timestamp() * 1e6) + 7_200_000_000
    )
    pipeline.rank(RankRequest(context=beyond, poi_ids=["nowhere"]))
    pipeline.close()
    assert sum(map(len, answers_of(place.served, bundle.manifest.version))) == 61
    assert not list(answers_of(place.served, "another"))
    assert len(prove.served_rows(place, bundle)) == 60


@pytest.mark.parametrize("is_past", [True, False])
def test_an_answer_for_another_moment_than_what_was_read_is_of_is_not_kept(place, bundle, is_past):
    """A later pull is as of the answer's moment, and finds other values."""
    kept = ServedLog(place.served, 1.0, bundle.manifest.version, bundle.schema)
    pipeline = Pipeline(FeatureReader(open_store(place), bundle), Scorer(bundle), keepers=[kept])
    poi_ids = tuple(pq.read_table(place.source("pois"))[columns.POI_ID].to_pylist()[:5])
    at = moment_of(place) - timedelta(days=3) if is_past else datetime.now(UTC) + timedelta(hours=1)
    context = RequestContext(user_id="u1", scenario_id="search", time_us=int(at.timestamp() * 1e6))
    assert pipeline.rank(RankRequest(context=context, poi_ids=poi_ids)).degradation is None
    pipeline.close()
    assert not list(place.served.glob("*.parquet"))


def test_a_folder_that_cannot_be_written_fails_no_answer_and_is_told_once(place, bundle, caplog, monkeypatch):
    place.served.write_text("no folder")
    pipeline = serve(place, bundle, rows=12)
    (kept,) = pipeline._keepers
    assert kept._kept == [], "what cannot be written is not kept either"
    assert [record.getMessage() for record in caplog.records if record.name == "serving.served"] == [
        f"what answers were made of cannot be written: [Errno 17] File exists: '{place.served}'; it is left out"
    ]
    place.served.unlink()
    pipeline.rank(RankRequest(context=RequestContext(user_id="u1", scenario_id="search"), poi_ids=["nowhere"]))
    place.served.mkdir()
    monkeypatch.setattr("serving.served.os.replace", full)
    pipeline.close()
    assert not list(place.served.iterdir()), "no half of a file is left"


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_share_is_kept_and_none_is_refused(place, bundle, tmp_path):
    serve(place, bundle, share=1e-9).close()
    assert not place.served.exists()
    for share in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=f"not {share}"):
            ServedLog(Path(tmp_path), share, "v", bundle.schema)
