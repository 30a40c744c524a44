"""Prompted knowledge over its life: snapshots, what is asked once, runs that break off, clocks and other versions."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import FAVOURITES
from feature_repo.workspace import Workspace
from trainers.knowledge import load_matrix
from trainers.language import prompted as stage
from trainers.language.embed import embed
from trainers.language.encoder import EncoderConfig
from trainers.language.facts import FactsConfig
from trainers.language.model import ModelError, Provenance
from trainers.language.poolings import Pooling
from trainers.language.prompted import KnowledgeConfig, KnowledgeReport, ask
from trainers.language.texts import TextError

USERS, SCENARIOS = "user_knowledge", "scenario_knowledge"
PLACES = [("p1", "bakery", "", "rye bread"), ("p2", "noodles", "", "ramen"), ("p3", "bar", "")]
# Midnights lie at the hours 16, 40, 64 and 88. u1 comes on the first and the third day, u2 once, u3 on the third.
SHOWN = [
    (0.0, "u1", "p1", True),
    (0.0, "u1", "p3", False),
    (1.0, "u2", "p2", True, "clear", 0.01, "search"),
    (50.0, "u1", "p2", True),
    (51.0, "u3", "p3", True, "clear", 0.01, "search"),
]
MIDNIGHTS = [datetime(2026, 3, day, tzinfo=UTC) for day in (3, 4, 5, 6)]


@pytest.fixture
def asked(street: Callable[..., Workspace]) -> Workspace:
    return street(PLACES, SHOWN)


@pytest.fixture
def config(tiny: EncoderConfig) -> KnowledgeConfig:
    encoder = dataclasses.replace(tiny, max_length=512)
    return KnowledgeConfig(encoder=encoder, scenario_prompt="brief", facts=FactsConfig(every_days=1), tokens=4)


def table_of(workspace: Workspace, space: str = USERS) -> pa.Table:
    return pq.read_table(workspace.knowledge / f"{space}.parquet")


def micro(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def rows_at(workspace: Workspace, key: str, *times: datetime, space: str = USERS) -> list[int]:
    matrix = load_matrix(workspace.knowledge / f"{space}.parquet")
    return [int(row) for row in matrix.rows_at([key] * len(times), np.array([micro(time) for time in times]))]


def level(report: KnowledgeReport, space: str) -> tuple[int, int, int, int]:
    of = next(found for found in report.levels if found.space == space)
    return of.snapshots, of.prompts, of.different, of.computed


def test_there_is_a_line_for_each_snapshot_and_a_call_for_each_prompt(
    asked: Workspace, config: KnowledgeConfig
) -> None:
    report = ask(asked, config)
    # u1 and u2 at four midnights, u3 at two; u1 has two prompts, before and after the third day. What `brief` says of a
    # scenario is the same all the time.
    assert level(report, USERS) == (4, 10, 4, 4)
    assert level(report, SCENARIOS) == (4, 8, 2, 2)
    table = table_of(asked)
    fields = ("row", "version", "text_hash", "text", "words", "told", "prompt", "vector", "model", "computed_at")
    assert table.column_names == [
        columns.USER_ID,
        columns.EVENT_TIMESTAMP,
        columns.CREATED_TIMESTAMP,
        *(f"{USERS}_{field}" for field in fields),
    ]
    assert table[columns.EVENT_TIMESTAMP].equals(table[columns.CREATED_TIMESTAMP])
    lines = list(zip(table[columns.EVENT_TIMESTAMP].to_pylist(), table[columns.USER_ID].to_pylist(), strict=True))
    assert lines == [(m, u) for m in MIDNIGHTS for u in (("u1", "u2") if m < MIDNIGHTS[2] else ("u1", "u2", "u3"))]
    instant = timedelta(microseconds=1)
    first, *others = rows_at(asked, "u1", *MIDNIGHTS)
    assert others == [first, others[1], others[1]] and others[1] != first
    assert rows_at(asked, "u1", MIDNIGHTS[0] - instant, MIDNIGHTS[2] - instant) == [0, first]
    assert rows_at(asked, "u3", MIDNIGHTS[1], MIDNIGHTS[2])[0] == 0
    assert table[f"{USERS}_told"].null_count == len(table)


def test_what_a_person_sees(asked: Workspace, config: KnowledgeConfig) -> None:
    report = ask(asked, config)
    table = table_of(asked)
    assert table[f"{USERS}_text"][0].as_py() == (
        "Chose 1 of 2 in 1 request; most of all bakery and rye bread. Home: bakery."
    )
    words = table[f"{USERS}_words"][0].as_py()
    assert len(words.split(", ")) == 5 and words.split(", ")[0].rsplit(" ", 1)[0] in stage.words_of(asked, None)
    assert [(example.space, example.key) for example in report.examples] == [
        (SCENARIOS, "home"),
        (SCENARIOS, "search"),
        (USERS, "u1"),
        (USERS, "u2"),
        (USERS, "u3"),
    ]
    assert report.examples[2].words == table[f"{USERS}_words"][-3].as_py()
    assert report.tastes is None  # nobody knows the truth about this street


def test_words_of_a_snapshot_know_nothing_of_later_ones(asked: Workspace, config: KnowledgeConfig) -> None:
    """Neither do they of what is usual then: the prior is that of the snapshot."""
    ask(asked, config)
    before = table_of(asked)
    path = asked.source("impressions")
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        if row[columns.EVENT_TIMESTAMP] >= MIDNIGHTS[1]:
            row[columns.POI_ID] = "p3" if row[columns.POI_ID] == "p2" else "p1"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    ask(asked, config)
    after = table_of(asked)
    early = [time < MIDNIGHTS[2] for time in before[columns.EVENT_TIMESTAMP].to_pylist()]
    assert before.filter(pa.array(early)).equals(after.filter(pa.array(early)))
    assert not before.equals(after)


def test_tastes_are_compared_where_a_simulation_knows_them(asked: Workspace, config: KnowledgeConfig) -> None:
    truth = {columns.USER_ID: ["u1", "u2", "u3"], columns.CATEGORY: ["noodles", "bar", "noodles"]}
    pq.write_table(pa.table(truth, schema=FAVOURITES), asked.source("favourites"))
    tastes = ask(asked, config).tastes
    assert tastes is not None
    assert (tastes.users, tastes.kinds, tastes.clicked) == (3, 2, 1 / 3)  # u1 clicked noodles last, of two kinds
    mine = asked.root / "mine.txt"
    mine.write_text("sweet\nsalty\n")
    assert ask(asked, dataclasses.replace(config, words=mine)).tastes is None


def test_a_second_run_asks_nothing_and_touches_nothing(
    asked: Workspace, config: KnowledgeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(asked, config)
    before = {path: path.stat().st_mtime_ns for path in asked.knowledge.rglob("*.parquet")}
    monkeypatch.delattr(stage, "reader_of")  # a model that is not needed is not loaded
    second = ask(asked, config)
    assert [of.computed for of in second.levels] == [0, 0]
    assert second.examples == first.examples
    assert {path: path.stat().st_mtime_ns for path in asked.knowledge.rglob("*.parquet")} == before


@pytest.mark.parametrize("pooling", ["last", "generated-last", "generated-mean"])
def test_the_same_log_gives_the_same_vectors(asked: Workspace, config: KnowledgeConfig, pooling: Pooling) -> None:
    config = dataclasses.replace(config, pooling=pooling)
    tables = []
    for _ in range(2):
        ask(asked, config)
        tables.append(table_of(asked).drop_columns([f"{USERS}_computed_at"]))
        shutil.rmtree(asked.knowledge)
    assert tables[0].equals(tables[1])


class BrokenOff(RuntimeError):
    pass


@pytest.mark.parametrize("gently", [True, False])
def test_a_run_that_breaks_off_keeps_what_was_said(
    asked: Workspace, config: KnowledgeConfig, monkeypatch: pytest.MonkeyPatch, gently: bool
) -> None:
    """`gently`: by an exception, after which all is put away; else as by a kill: what was not put away is lost."""
    whole = dict(vectors(asked, config))
    shutil.rmtree(asked.knowledge)
    one_by_one = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, max_tokens=1))

    def break_off(what: str, done: int, total: int) -> None:
        if what == USERS and done == 3:
            raise BrokenOff

    with monkeypatch.context() as patch:
        patch.setattr(stage, "CHECKPOINT_CALLS", 2)
        keep = stage.Calls.keep

        def kept(calls: Any, prompts: Any, answers: Any) -> None:
            if gently or len(prompts) == 2:
                keep(calls, prompts, answers)

        patch.setattr(stage.Calls, "keep", kept)
        with pytest.raises(BrokenOff):
            ask(asked, one_by_one, break_off)
    assert not (asked.knowledge / f"{USERS}.parquet").exists()
    report = ask(asked, one_by_one)
    assert level(report, USERS) == (4, 10, 4, 1 if gently else 2)
    assert level(report, SCENARIOS)[3] == 0
    for prompt, vector in vectors(asked, one_by_one):
        np.testing.assert_allclose(vector, whole[prompt], atol=1e-5)
    assert len(list((asked.knowledge / USERS).glob("*.calls/*.parquet"))) == 1


def vectors(workspace: Workspace, config: KnowledgeConfig) -> list[tuple[str, np.ndarray]]:
    ask(workspace, config)
    table = table_of(workspace)
    found = zip(table[f"{USERS}_prompt"].to_pylist(), table[f"{USERS}_vector"].to_pylist(), strict=True)
    return [(prompt, np.array(vector, np.float32)) for prompt, vector in found]


def test_another_prompt_is_another_version_and_the_way_back_is_free(
    asked: Workspace, config: KnowledgeConfig, tmp_path: Path
) -> None:
    ask(asked, config)
    first = (asked.knowledge / f"{USERS}.parquet").read_bytes()
    mine = tmp_path / "mine.txt"
    mine.write_text("Likes {likes}: ")
    report = ask(asked, dataclasses.replace(config, user_prompt=str(mine)))
    assert level(report, USERS)[3] == 4 and level(report, SCENARIOS)[3] == 0
    assert set(table_of(asked)[f"{USERS}_prompt"].to_pylist()) == {
        "Likes bakery: ",
        "Likes noodles: ",
        "Likes bar: ",
        "Likes noodles and bakery: ",
    }
    assert level(ask(asked, config), USERS)[3] == 0
    assert (asked.knowledge / f"{USERS}.parquet").read_bytes() == first


def test_what_is_told_belongs_to_the_version_and_the_same_prompt_is_asked_once(
    asked: Workspace, config: KnowledgeConfig
) -> None:
    """Else rows that a bundle knows would be gone under a version that still calls itself the same."""
    ask(asked, config)
    first = table_of(asked)
    for other in (
        dataclasses.replace(config, platform="A post office"),
        dataclasses.replace(config, facts=dataclasses.replace(config.facts, liked=1)),
        dataclasses.replace(config, facts=dataclasses.replace(config.facts, every_days=2)),
    ):
        report = ask(asked, other)
        versions = {v for table in (first, table_of(asked)) for v in table[f"{USERS}_version"].to_pylist()}
        assert len(versions) == 2
        new = set(table_of(asked)[f"{USERS}_prompt"].to_pylist()) - set(first[f"{USERS}_prompt"].to_pylist())
        assert level(report, USERS)[3] == len(new)
    assert level(ask(asked, config), USERS)[3] == 0 and table_of(asked).equals(first)


def test_rows_keep_their_meaning_when_the_log_goes_on(
    street: Callable[..., Workspace], config: KnowledgeConfig
) -> None:
    young = street(PLACES, SHOWN[:3])
    ask(young, config)
    before = dict(zip(*(table_of(young)[f"{USERS}_{f}"].to_pylist() for f in ("prompt", "row")), strict=True))
    knowledge = young.root.with_name("kept")
    shutil.move(young.knowledge, knowledge)
    shutil.rmtree(young.root)
    grown = street(PLACES, SHOWN)
    shutil.move(knowledge, grown.knowledge)
    assert level(ask(grown, config), USERS)[3] == 2
    after = dict(zip(*(table_of(grown)[f"{USERS}_{f}"].to_pylist() for f in ("prompt", "row")), strict=True))
    assert before.items() <= after.items() and sorted(after.values()) == [1, 2, 3, 4]


def test_a_tuned_model_is_asked_from_its_cut_off_on(asked: Workspace, config: KnowledgeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(config.encoder.model, folder)
    cut = MIDNIGHTS[1] + timedelta(hours=1)
    Provenance(stage="pretrain", base="tiny", available_at=cut, config={}).write(folder)
    report = ask(asked, dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, model=str(folder))))
    assert level(report, USERS) == (3, 8, 4, 4)
    table = table_of(asked)
    assert table[columns.EVENT_TIMESTAMP].to_pylist()[:2] == [cut, cut]
    assert rows_at(asked, "u1", cut - timedelta(microseconds=1))[0] == 0 != rows_at(asked, "u1", cut)[0]


def test_the_mean_of_pois_asks_no_model(
    asked: Workspace, config: KnowledgeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(asked, dataclasses.replace(config.encoder, max_length=EncoderConfig().max_length), spaces=["poi_text"])
    monkeypatch.delattr(stage, "reader_of")
    ask(asked, dataclasses.replace(config, pooling="poi-mean"))
    pois = load_matrix(asked.knowledge / "poi_text.parquet")
    of = {key: pois.matrix[row] for key, row in zip(pois.keys.to_pylist(), pois.rows, strict=True)}
    table = table_of(asked)
    found = {
        (user, time): np.array(vector, np.float32)
        for user, time, vector in zip(
            *(table[name].to_pylist() for name in (columns.USER_ID, columns.EVENT_TIMESTAMP, f"{USERS}_vector")),
            strict=True,
        )
    }
    np.testing.assert_allclose(found["u1", MIDNIGHTS[0]], of["p1"], atol=1e-6)
    np.testing.assert_allclose(found["u1", MIDNIGHTS[3]], (of["p1"] + of["p2"]) / 2, atol=1e-6)
    home = table_of(asked, SCENARIOS)
    last = np.array(home[f"{SCENARIOS}_vector"].to_pylist()[-2], np.float32)
    np.testing.assert_allclose(last, (of["p1"] + of["p2"]) / 2, atol=1e-6)
    # Vectors that this model made are states that its head can read; those of another model are not.
    assert table[f"{USERS}_words"].null_count == 0
    ask(
        asked,
        dataclasses.replace(config, pooling="poi-mean", encoder=dataclasses.replace(config.encoder, revision="x")),
    )
    longer = dataclasses.replace(config.encoder, max_length=300)
    embed(asked, longer, spaces=["poi_text"])
    ask(asked, dataclasses.replace(config, pooling="poi-mean"))
    assert table_of(asked)[f"{USERS}_words"].null_count == len(table)


def test_free_text_is_written_on_request_and_says_who_wrote_it(asked: Workspace, config: KnowledgeConfig) -> None:
    telling = dataclasses.replace(config, tell=True)
    report = ask(asked, telling)
    told = table_of(asked)[f"{USERS}_told"].to_pylist()
    assert all(text.startswith(f"{config.encoder.model} float32: ") for text in told)
    assert report.examples[-1].told == told[-1]
    files = {path: path.stat().st_mtime_ns for path in asked.knowledge.rglob("told-*/*.parquet")}
    ask(asked, telling)
    assert files and {path: path.stat().st_mtime_ns for path in files} == files


def test_a_failed_write_leaves_the_old_file(
    asked: Workspace, config: KnowledgeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(asked, config)
    before = (asked.knowledge / f"{USERS}.parquet").read_bytes()

    def full_disk(source: object, target: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            ask(asked, dataclasses.replace(config, user_prompt="history"))
    assert (asked.knowledge / f"{USERS}.parquet").read_bytes() == before


def test_what_cannot_be_asked_is_said(asked: Workspace, config: KnowledgeConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no pooling 'max'; there are last, generated-last, generated-mean, poi-mean"):
        dataclasses.replace(config, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="tokens must be positive"):
        dataclasses.replace(config, tokens=0)
    with pytest.raises(TextError, match="holds no source tables"):
        ask(Workspace(tmp_path / "nowhere"), config)
    with pytest.raises(ValueError, match=r"poi_text\.parquet: no such knowledge file; embed the texts first"):
        ask(asked, dataclasses.replace(config, pooling="poi-mean"))
    assert not list(tmp_path.glob("nowhere/*"))
