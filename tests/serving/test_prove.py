"""The certificate: what it compares, which skew it names, and what a server makes of it."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from feature_repo import columns
from serving import certificate, online, prove, replay
from serving.client import Access, Asker, Recommender
from serving.online import ValueStatus
from serving.opening import open_pipeline
from serving.operator_client import Operator
from serving.poi_cache import PoiCache
from trainers import bundle as bundles
from trainers.bundle import CERTIFICATE, Bundle

IMPRESSIONS = 120
DAY_US = 86_400_000_000
Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def bundle(city) -> Bundle:
    return bundles.load(city.workspace.bundles / "larr")


@pytest.fixture(scope="module")
def store(city) -> Any:
    from feature_repo.store import open_store

    return open_store(city.workspace)


@pytest.fixture
def proved(city, store, bundle) -> Callable[..., certificate.Certificate]:
    return lambda of=bundle: prove.prove(city.workspace, store, of, IMPRESSIONS)


def test_the_certificate_of_a_bundle_covers_every_case_and_every_status(city, bundle):
    found = certificate.check(city.workspace.bundles / "larr", bundle)
    assert found.valid
    assert found.impressions >= 200
    assert set(found.cases) == set(prove.CASES)
    assert set(found.values) == {s.name.lower() for s in ValueStatus}
    assert min(found.values.values()) > 0
    assert "all agree" in city.printed["prove"]


def test_a_question_is_what_the_log_says_or_says_what_was_changed(city):
    asked = prove.questions(city.workspace, IMPRESSIONS)
    assert [q.time_us for q in asked] == sorted(q.time_us for q in asked)
    by_case = {q.case: q for q in asked}
    assert by_case["unknown user"].context.user_id == prove.STRANGER
    assert prove.STRANGER in by_case["unknown place"].poi_ids
    assert by_case["silent moment"].context.place is None
    assert not by_case["silent moment"].context.scene_inputs
    assert by_case["as logged"].context.scene_inputs
    rows = prove.spine(asked)
    assert rows[columns.ROW_ID].to_pylist() == list(range(len(rows)))
    assert rows[columns.POI_ID].to_pylist() == [poi for q in asked for poi in q.poi_ids]


def feeding(monkeypatch: pytest.MonkeyPatch, view: str, change: Change) -> None:
    """Give the online store other rows of one view than there are."""
    usual = replay._feed

    def changed(store: Any, packed: Any, of: Any) -> Any:
        feed = usual(store, packed, of)
        if of.name == view:
            feed.rows = change(feed.rows).sort(replay.KNOWN, maintain_order=True)
        return feed

    monkeypatch.setattr(replay, "_feed", changed)


def shifted(column: str, by_us: int) -> Change:
    return lambda rows: rows.with_columns(pl.col(column) + by_us)


def stopped(rows: pl.DataFrame) -> pl.DataFrame:
    """A pipeline that died a week before the log's end."""
    last = rows[replay.KNOWN].max()
    assert isinstance(last, int)
    return rows.filter(pl.col(replay.KNOWN) < last - 7 * DAY_US)


def exchanged(column: str) -> Change:
    """Codes in another order: each word stands for the next one."""

    def change(rows: pl.DataFrame) -> pl.DataFrame:
        words = rows[column].drop_nulls().unique().sort()
        return rows.with_columns(pl.col(column).replace(words, words.shift(-1, fill_value=words[0])))

    return change


COUNT = columns.statistic("poi", "impressions", 7)
TEXT_ROW = columns.knowledge("poi_text", columns.ROW)
# What went wrong -> the view whose rows are other ones online, how, and the column that has to be named.
SKEWS: dict[str, tuple[str, Change, str]] = {
    "a missing count is nought": (
        "poi_stats",
        lambda rows: rows.with_columns(pl.when(pl.col(COUNT) == 0).then(None).otherwise(pl.col(COUNT)).alias(COUNT)),
        COUNT,
    ),
    "a stale view": ("poi_stats", stopped, columns.statistic("poi", "impressions", 28)),
    "values of tomorrow": ("poi_stats", shifted(replay.KNOWN, -DAY_US), COUNT),
    "events that arrive days late": ("user_state", shifted(replay.KNOWN, 3 * DAY_US), columns.RECENT_POIS),
    "categories in another order": ("poi_profile", exchanged(columns.CATEGORY), columns.CATEGORY),
    "another unit": ("poi_stats", lambda rows: rows.with_columns(pl.col(COUNT) * 1000), COUNT),
    "a number rounded to 32 bits": (
        "poi_profile",
        lambda rows: rows.with_columns(pl.col(columns.POI_LATITUDE).cast(pl.Float32).cast(pl.Float64)),
        columns.POI_LATITUDE,
    ),
    "a list the other way round": (
        "user_state",
        lambda rows: rows.with_columns(pl.col(columns.RECENT_POIS).list.reverse()),
        columns.RECENT_POIS,
    ),
    "vectors one row off": ("poi_text", lambda rows: rows.with_columns(pl.col(TEXT_ROW) - 1), TEXT_ROW),
    "rows of another key": (
        "user_poi_stats",
        lambda rows: rows.with_columns(pl.col(columns.POI_ID).shift(1).over(columns.USER_ID)).drop_nulls(
            columns.POI_ID
        ),
        columns.statistic("user_poi", "impressions", 28),
    ),
}


@pytest.mark.parametrize("skew", SKEWS)
def test_skew_of_stored_values_is_named_by_view_and_column(skew, proved, monkeypatch):
    view, change, column = SKEWS[skew]
    feeding(monkeypatch, view, change)
    found = proved()
    assert not found.valid
    named = {(d.view, d.column) for d in found.differences}
    assert (view, column) in named
    example = next(d for d in found.differences if d.column == column)
    assert 0 < example.rows <= found.impressions
    assert "online" in example.example and "offline" in example.example


def test_a_shifted_time_zone_is_named_by_what_is_computed_of_the_moment(proved, bundle):
    found = proved(replace(bundle, schema=replace(bundle.schema, timezone="Asia/Tokyo")))
    assert "scene_hour" in {d.column for d in found.differences}


def test_another_time_to_live_is_named(proved, monkeypatch):
    usual = online.open_view

    def forgetful(store: Any, name: str, features: Any) -> Any:
        view = usual(store, name, features)
        if name != "user_stats":
            return view
        short = int(timedelta(hours=1).total_seconds() * 1e6)
        return replace(view, ttl_us=short, plan=replace(view.plan, ttl_us=short))

    monkeypatch.setattr("serving.features.open_view", forgetful)
    assert {d.view for d in proved().differences} == {"user_stats"}


def test_values_of_places_that_are_kept_are_compared_in_every_case(city, proved, monkeypatch):
    assert {q.case for q in prove.questions(city.workspace, IMPRESSIONS) if q.kept} == set(prove.CASES)
    usual = PoiCache.refresh

    def once(cache: PoiCache) -> None:
        if not math.isfinite(cache.age_s):
            usual(cache)

    monkeypatch.setattr(PoiCache, "refresh", once)
    found = proved()
    assert COUNT in {d.column for d in found.differences}, "what was read first is kept, whatever was written since"
    assert {d.view for d in found.differences} <= {"poi_profile", "poi_stats", "poi_text"}


def test_the_certificate_is_of_all_code_that_values_pass_through():
    """What the two paths import is hashed, or stands here because no value passes through it."""
    bystanders = {"serving/observe.py", "trainers/bundle.py", "trainers/spine.py"}
    root = Path(certificate.__file__).parents[1]
    imported = {
        f"{node.module.replace('.', '/')}.py"
        for path in ("serving/features.py", "trainers/training_set.py")
        for node in ast.walk(ast.parse((root / path).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("serving", "trainers")
    }
    assert imported - bystanders <= set(certificate.PATHS)
    assert {"serving/poi_cache.py", "trainers/rows.py"} <= imported
    assert all((root / path).is_file() for path in certificate.PATHS)


def test_bits_are_compared_not_values():
    zeros = pa.table({"x": [0.0, float("nan"), None], columns.USER_ID: ["u"] * 3, columns.POI_ID: ["p"] * 3})
    minus = pa.table({"x": [-0.0, float("nan"), None], columns.USER_ID: ["u"] * 3, columns.POI_ID: ["p"] * 3})
    assert list(prove.differences(zeros, zeros, ())) == []
    (found,) = prove.differences(zeros, minus, ("v:x",))
    assert (found.column, found.view, found.rows) == ("x", "v", 1)
    other = minus.set_column(0, "x", pa.array([0, 1, None], pa.int64()))
    assert "double" in next(prove.differences(zeros, other, ())).example


@pytest.fixture
def folder(city, tmp_path) -> Path:
    """A copy of the bundle, to do harm to."""
    copy = tmp_path / "larr"
    bundles.load(city.workspace.bundles / "larr").save(copy)
    return copy


def certificate_of(city: Any, **changes: Any) -> certificate.Certificate:
    folder = city.workspace.bundles / "larr"
    return replace(certificate.check(folder, bundles.load(folder)), **changes)


def test_a_server_takes_a_proven_bundle_and_says_so(city):
    assert open_pipeline(city.workspace, city.workspace.bundles / "larr", None).proven


@pytest.mark.parametrize("proven", [True, False])
def test_every_answer_says_whether_its_bundle_is_proven(city, workspace, project_in, moment, proven):
    """The workspace of the tests of serving has bundles without a certificate."""
    project = city if proven else project_in(workspace.root)
    asker = Asker(user_id="u3", scenario_id="lunch_deals", time=moment)
    with project.served("--bundle", "larr", *([] if proven else ["--unproven"])) as served:
        with Recommender(served.address, Access(timeout_seconds=30)) as client:
            found = client.recommend(asker)
            ranked = client.rank(asker, found.poi_ids)
            explained = client.explain(asker, found.poi_ids[0])
            unknown = client.rank(Asker(user_id="nobody", scenario_id="search"), ["nowhere"])
        with Operator(served.address) as operator:
            models = [answer.model for answer in (found, ranked, explained, unknown)] + [operator.serving().current]
    assert [(model.name, model.proven) for model in models] == [("larr", proven)] * 5


def test_a_server_takes_no_bundle_without_a_certificate_unless_told_to(city, folder):
    with pytest.raises(
        certificate.Unproven, match=r"no certificate .* run `scenerank prove --bundle larr`, or serve with --unproven"
    ):
        open_pipeline(city.workspace, folder, None)
    assert not open_pipeline(city.workspace, folder, None, unproven=True).proven


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bundle": "0123456789abcdef"}, "is of bundle 0123456789abcdef"),
        ({"code": "0123456789abcdef"}, "made by other code"),
        ({"impressions": 0}, "nothing compared"),
        ({"differences": (certificate.Difference(column="c", view="v", rows=1, example="e"),)}, r"differ \(c\)"),
    ],
)
def test_a_certificate_that_does_not_hold_is_refused_with_the_reason(city, folder, changes, why):
    certificate_of(city, **changes).save(folder)
    with pytest.raises(certificate.Unproven, match=why):
        open_pipeline(city.workspace, folder, None)


def test_a_damaged_certificate_is_refused(city, folder):
    (folder / CERTIFICATE).write_text(json.dumps({"bundle": 1}))
    with pytest.raises(certificate.Unproven, match="damaged"):
        open_pipeline(city.workspace, folder, None)


CODES = """
import sys
from pathlib import Path
from serving.certificate import code
print(code())
for path in sys.argv[1:]:
    with Path(path).open("a") as source:
        source.write("# changed")
    print(code())
"""


def test_what_makes_values_is_in_the_code_and_what_does_not_is_not(project):
    makes = ["feature_repo/streaming/state.py", "feature_repo/stores/packed.py", "feature_repo/users.py"]
    codes = project.run("-c", CODES, *makes, "serving/online.py", "serving/screen.py").stdout.split()
    assert len(codes) == 6 and len(set(codes)) == 5
    assert codes[-1] == codes[-2], "how a table is printed changes no value"


def test_training_again_forgets_the_certificate(city, folder):
    certificate_of(city).save(folder)
    bundles.load(folder).save(folder)
    assert not (folder / CERTIFICATE).exists()
