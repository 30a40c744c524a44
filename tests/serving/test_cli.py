"""The command line: what each verb says and makes, what it does the second time, and how it names a mistake."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.choose import DATA_VARIABLE, DatasetName, Options, workspace_name
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import ENVIRONMENT_VARIABLE, Workspace
from serving import cli
from serving.options import root_of

VERBS = (
    *("run", "data", "model", "pretrain", "embed", "knowledge", "apply", "diff", "materialize"),
    *("backfill", "train", "index", "serve", "rank", "recommend", "explain"),
)
TINY_CITY = ("--users", "20", "--days", "14", "--pois", "30")
# Rewritten by every command, with the same content.
# The last ones whenever the database is opened, and its log becomes part of it.
REWRITTEN = {"registry.db", "feature_store.yaml", "online.db", "online.db-shm", "online.db-wal"}


def files(workspace: Workspace) -> dict[str, int]:
    """When each file of a workspace was written."""
    found = {str(p.relative_to(workspace.root)): p for p in workspace.root.rglob("*") if p.is_file()}
    return {name: path.stat().st_mtime_ns for name, path in found.items() if path.name not in REWRITTEN}


def test_a_verb_that_asks_a_server_loads_neither_feast_nor_torch(checkout):
    loaded = "import sys, serving.cli, serving.demo, serving.client; print(*sys.modules)"
    assert not {"feast", "torch", "polars"} & set(checkout.run("-c", loaded).stdout.split())


def test_help_names_every_verb(scenerank):
    done = scenerank("--help")
    assert done.exit_code == 0
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", done.words)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(scenerank, verb):
    done = scenerank(verb, "--help")
    assert done.exit_code == 0
    assert f"Usage: scenerank {verb}" in done.words


WITH_A_LOG = ("freshness", "feedback", "rank", "recommend", "explain")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("data", "atlantis"), "'atlantis' is not one of 'city', 'kuairand', 'foursquare', 'movielens', 'kuaisar'"),
        (("data", "city", "--size", "huge"), "no city of size 'huge'; there are small, default"),
        (("data", "city", "--from", "raw"), "city takes no --from: what it knows is --size, --users, --days, --pois"),
        (("data", "foursquare", "--users", "50"), "foursquare takes no --users: what it knows is --from, --seed"),
        (("data", "kuairand", "--days", "3"), "kuairand takes no --days: what it knows is --users, --from, --seed"),
        (("run", "movielens", "--size", "small"), "movielens takes no --size"),
        (("data", "foursquare"), "set SCENERANK_DATA to a folder with foursquare_nyc_dining/"),
        (("data", "kuairand"), "set SCENERANK_DATA to a folder with kuairand_pure/"),
        (("data", "ali_ccp"), "set SCENERANK_DATA to a folder with ali_ccp/"),
        (("data", "amazon", "--from", "nowhere"), "No such file or directory: 'nowhere/reviews_Beauty_5.json.gz'"),
        (("data", "mapping"), "say where a mapping file (docs/mapping.md) is: --from PATH"),
        (("apply", "--profile", "oracle"), "no store profile 'oracle'; there are embedded, cluster, postgres,"),
        (("pretrain",), "holds no source tables; build those of this workspace first"),
        (("pretrain", "--sharding", "zero"), "no sharding 'zero'; there are ddp and fsdp"),
        (("pretrain", "--steps", "0"), "steps, log_every, checkpoint_every and threads must be positive"),
        (("pretrain", "--general", "2"), "general, histories and conditional are shares in 0 .. 1"),
        (("knowledge",), "holds no source tables; build those of this workspace first"),
        (("knowledge", "--pooling", "max"), "no pooling 'max'; there are last, generated-last"),
        (("knowledge", "--every", "0"), "every_days, liked, kinds, clicks and own must be positive"),
        (("materialize",), "feature_store.yaml is not there: run `scenerank apply` first"),
        (("train",), "feature_store.yaml is not there: run `scenerank apply` first"),
        *(((verb,), "holds no source tables: run `scenerank data city` first") for verb in WITH_A_LOG),
        (("apply", "--profile", "redis"), "the store profile 'redis' takes SCENERANK_REDIS from the environment"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(scenerank, tmp_path, monkeypatch, command, message):
    for name in (DATA_VARIABLE, "SCENERANK_REDIS"):
        monkeypatch.delenv(name, raising=False)
    done = scenerank(*command, "--workspace", tmp_path / "new")
    assert done.exit_code == 2
    assert message in done.words
    assert "Traceback" not in done.output
    assert not (tmp_path / "new").exists()


def test_a_city_of_another_size_is_a_workspace_of_its_own(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    usual, small = Options(), Options(size="small")
    roots = [root_of(None, workspace_name(DatasetName.CITY, options)) for options in (usual, small)]
    assert [root.name for root in roots] == ["city", "city-small"]


def test_data_that_was_made_is_not_made_again(scenerank, tmp_path):
    workspace = Workspace(tmp_path / "city")
    command = ("data", "city", *TINY_CITY, "--workspace", workspace.root)
    assert scenerank(*command).exit_code == 0
    made = files(workspace)
    assert {"sources/impressions.parquet", "sources/user_state.parquet", "sources/poi_stats.parquet"} <= made.keys()
    assert scenerank(*command).exit_code == 0
    assert files(workspace) == made
    assert scenerank(*command, "--seed", "1").exit_code == 0
    assert files(workspace)["sources/impressions.parquet"] != made["sources/impressions.parquet"]


def test_what_the_verbs_said_when_they_made_the_city(city):
    assert re.search(r"^larr_[0-9a-f]{8}: \d+ views$", city.printed["apply"], re.MULTILINE)
    for model in ("larr", "ple", "best attainable"):
        assert re.search(rf"^│ {model} ", city.printed["train"], re.MULTILINE)
    assert "nearby popularity" in city.printed["index"]


@pytest.mark.parametrize(
    "verb",
    [
        ("apply",),
        ("materialize",),
        ("train", "--model", "larr", "--recipe", "tiny"),
        ("train", "--model", "ple", "--recipe", "tiny"),
        ("index",),
    ],
)
def test_the_second_time_a_verb_makes_nothing(city, scenerank, verb):
    before = files(city.workspace)
    done = scenerank(*verb)
    assert done.exit_code == 0, done.output
    assert files(city.workspace) == before


def test_the_second_embedding_embeds_nothing(city, scenerank, tiny_model):
    before = files(city.workspace)
    assert scenerank("embed", "--language-model", str(tiny_model)).exit_code == 0
    assert files(city.workspace) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1", "--ray", "2"], "by an endpoint or by Ray, not by both"),
        (["--endpoint", "gpu-1:8000"], "http:// or https://"),
        (["--ray", "-1"], "must be positive"),
        (["--language-model", "no/such-model-here"], "nor a folder, nor a Hugging Face id"),
    ],
)
def test_where_texts_cannot_be_embedded_is_said(scenerank, options, message):
    done = scenerank("embed", *options)
    assert done.exit_code == 2
    assert message in done.words


def test_diff_says_nothing_after_apply(city, scenerank):
    done = scenerank("diff")
    assert (done.exit_code, done.output) == (0, "")


def test_a_backfill_of_one_scenario_and_time_range(city, scenerank):
    split = Schema.load(city.workspace.schema).split
    start, end = (f"{moment:%Y-%m-%d}" for moment in (split.valid, split.end))
    done = scenerank("backfill", "--model", "ple", "--scenario", "search", "--from", start, "--to", end)
    assert done.exit_code == 0, done.output
    folder = Path(done.output.split()[-1])
    pulled = pq.read_table(sorted(folder.glob("part-*.parquet")))
    asked = pq.read_table(city.workspace.source("impressions"))
    day = pc.strftime(asked[columns.EVENT_TIMESTAMP], "%Y-%m-%d")
    mine = pc.and_(pc.greater_equal(day, start), pc.less(day, end))
    mine = pc.and_(mine, pc.equal(asked[columns.SCENARIO_ID], "search"))
    assert pulled[columns.ROW_ID].to_pylist() == asked.filter(mine)[columns.ROW_ID].to_pylist()
    assert not any(name.startswith("scene_") for name in pulled.column_names)
    service = folder.name.rsplit("-", 1)[0]
    named = scenerank("backfill", "--service", service, "--scenario", "search", "--from", start, "--to", end)
    assert Path(named.output.split()[-1]) == folder, "of the model's own service"
    shutil.rmtree(folder)


def test_the_loop_starts_with_data(project):
    done = project.scenerank("apply", check=False)
    assert done.returncode == 2
    assert "holds no source tables: run `scenerank data city` first" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train", "--model", "dlrm"), "no model 'dlrm'; there are ple, ple_scene_ids, larr"),
        (
            ("train", "--model", "ple", "--recipe", "vast"),
            "no recipe of size 'vast'; there are tiny, default, reference",
        ),
        (("train", "--backbone", "mlp-mixer"), "no backbone 'mlp-mixer'; there are"),
        (("backfill", "--service", "larr_of_old"), "service larr_of_old is not registered: there are larr_"),
        (("backfill", "--model", "llm4msr"), "llm4msr needs what a language model makes of users and scenarios"),
        (("knowledge", "--user-prompt", "haiku"), "no user prompt 'haiku': neither a file nor one of history"),
        (("backfill", "--scenario", "siesta"), "no impressions of scenario 'siesta'"),
        (("serve", "--bundle", "ple_scene_ids"), "bundles/ple_scene_ids"),
        (("serve", "--address", "0.0.0.0:0"), "0.0.0.0"),
        (("serve", "--address", "localhost"), "address 'localhost' is no host:port, such as 127.0.0.1:50051"),
        (("serve", "--processes", "2", "--address", "unix:/tmp/s"), "address 'unix:/tmp/s' is no host:port"),
        (("rank", "--scene", "weather"), "--scene 'weather' is not name=value"),
        (("rank", "--place", "here"), "--place 'here' is not latitude,longitude in degrees"),
        (("rank", "--token-file", "absent.tokens"), "absent.tokens: No such file"),
        (("rank", "--address", "127.0.0.1:1"), "UNAVAILABLE"),
    ],
)
def test_a_mistake_about_a_city_that_is_there(city, scenerank, command, message):
    done = scenerank(*command)
    assert done.exit_code == 2, done.output
    assert message in done.words


def test_a_served_city_answers_the_verbs(city, scenerank):
    with city.served("--bundle", "ple") as served:
        ranked = scenerank("rank", "--address", served.address, "--limit", "3")
        assert ranked.exit_code == 0, ranked.output
        assert len(re.findall(r"^│ +\d+ │", ranked.output, re.MULTILINE)) == 3
        named = scenerank("rank", "v1", "nowhere", "--address", served.address, "--user", "u1", "--scenario", "search")
        assert named.exit_code == 0, named.output
        assert "u1 in search" in named.output and "nowhere" in named.output
        found = scenerank("recommend", "--address", served.address, "--limit", "5", "--scene", "weather=snow")
        assert found.exit_code == 0, found.output
        assert "weather snow" in found.words
        assert len(re.findall(r"^│ +\d+ │", found.output, re.MULTILINE)) == 5
        where = ("--address", served.address, "--time", "2024-01-09T12:00:00", "--place", "60.17,24.94")
        near = scenerank("recommend", *where, "--radius-km", "0.001", "--objective", "order")
        assert near.exit_code == 0 and "no place fits" in near.words, near.output
        assert "hour 14:00" in near.words, "by the city's clock"
        wrong = scenerank("rank", "--address", served.address, "--scenario", "siesta")
        assert wrong.exit_code == 2
        assert "context.scenario_id: 'siesta' is unknown" in wrong.words


def test_every_seed_has_a_workspace_that_its_own_process_finds_again():
    base = Path("/somewhere/city")
    roots = cli.seed_roots(base, 0, 3, named=False)
    assert [root.name for root in roots.values()] == ["city", "city-seed1", "city-seed2"]
    for seed, root in roots.items():
        assert cli.seed_roots(root, seed, 1, named=True) == {seed: root}
