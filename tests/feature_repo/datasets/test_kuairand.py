"""KuaiRand: planted traps in the public format, and the published log where it is at hand."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from feature_repo.datasets import kuairand
from feature_repo.datasets.schema import DataError, Dataset

START = datetime(2022, 4, 25, tzinfo=UTC)
LOG = ["user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "long_view", "play_time_ms", "tab", "is_like"]
USERS = ["user_id", *kuairand.USER_ATTRIBUTES]
VIDEOS = ["video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "music_type", "tag"]


def log_row(user: int, video: int, day: float, click: int, long_view: int, tab: int = 1, like: int = 0) -> list[object]:
    """A row whose `hourmin` says midnight, as a trap: only `time_ms` is right."""
    moment = START + timedelta(days=day)
    return [user, video, 20220425, 0, int(moment.timestamp() * 1000), click, long_view, 1500, tab, like]


def write(file: Path, header: list[str], rows: list[list[object]]) -> None:
    pl.DataFrame(rows, schema=header, orient="row").write_csv(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "KuaiRand-Pure"
    data.mkdir()
    first = [log_row(1, 10, 0.5, 1, 1), log_row(1, 10, 0.5, 1, 1), log_row(1, 10, 0.5, 1, 1, like=1)]
    second = [
        log_row(2, 11, 1.5, 0, 1),  # long view without a click: no order
        log_row(2, 10, 2.5, 1, 0, tab=0),
        log_row(1, 11, 3.5, 1, 1, tab=9),  # a tab that the benchmark leaves out
        log_row(2, 11, 4.9, 0, 0, tab=6),
    ]
    write(data / "log_standard_4_08_to_4_21_pure.csv", LOG, first)
    write(data / "log_standard_4_22_to_5_08_pure.csv", LOG, second)
    write(data / "log_random_4_22_to_5_08_pure.csv", LOG, [log_row(1, 10, 1, 1, 1)])
    ranges = ["500+", "[10,100)", "0", "181-365"]
    users: list[list[object]] = [[u, "full_active", "0", "-124", "1", *ranges, *["1.0"] * 18] for u in (1, 2, 3)]
    write(data / "user_features_pure.csv", USERS, users)
    videos: list[list[object]] = [
        [10, 77, "NORMAL", "2022-04-10", "LongImport", 87433.0, 9.0, "39,68"],
        [11, 78, "AD", "2022-04-09", "UNKNOWN", None, None, None],
        [12, 79, "NORMAL", "2022-04-11", "Web", 5000.0, 4.0, "2"],
    ]
    write(data / "video_features_basic_pure.csv", VIDEOS, videos)
    return data


def load(folder: Path, tabs: tuple[int, ...] = (1, 0, 4, 2, 6)) -> Dataset:
    return kuairand.load(kuairand.KuaiRandConfig(folder=folder, tabs=tabs))


def frame(dataset: Dataset, table: str) -> pl.DataFrame:
    read = pl.from_arrow(dataset.tables[table])
    assert isinstance(read, pl.DataFrame)
    return read


def test_planted_traps(folder: Path, tmp_path: Path) -> None:
    dataset = load(folder)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows.height == 5, "one exact duplicate dropped, the row that differs in is_like kept, tab 9 left out"
    assert rows["click"].to_list() == [1, 1, 0, 1, 0]
    assert rows["order"].to_list() == [1, 1, 0, 0, 0], "no order without a click, no order without a long view"
    assert rows["event_timestamp"][0] == START + timedelta(hours=12), "time_ms, not hourmin"
    assert rows["outcome_timestamp"][0] - rows["event_timestamp"][0] == timedelta(milliseconds=1500)
    assert rows["scenario_id"].to_list() == ["tab_1", "tab_1", "tab_1", "tab_0", "tab_6"]
    assert rows["latitude"].null_count() == rows["position"].null_count() == 5


def test_users_and_videos_in_words(folder: Path) -> None:
    dataset = load(folder)
    users = frame(dataset, "users")
    assert users["user_id"].to_list() == ["1", "2"], "only users of the log"
    assert users["onehot_feat4"].to_list() == ["1", "1"], "1.0 and 1 are one word"
    assert users["text"][0] == (
        "An app user (activity: full active) who follows more than 500 accounts, has 10 to 100 fans and 0 friends, "
        "registered 181 to 365 days ago."
    )
    videos = frame(dataset, "pois")
    assert videos["category"].to_list() == ["long import", "unknown", "web"]
    assert videos["specialty"].to_list() == ["tag 39", None, "tag 2"]
    assert videos["text"].to_list() == [
        "A short video of 1 to 3 minutes, uploaded as long import, with tags 39, 68.",
        "A short advertisement of unknown length, uploaded as unknown, without tags.",
        "A short video of up to 10 seconds, uploaded as web, with tags 2.",
    ]
    assert videos["created_timestamp"][0] == datetime(2022, 4, 10, 16, tzinfo=UTC), "the end of the upload day in China"


def test_last_local_day_is_the_test_part(folder: Path) -> None:
    assert load(folder).schema.split.test == datetime(2022, 4, 29, 16, tzinfo=UTC)


def test_all_tabs(folder: Path) -> None:
    assert frame(load(folder, tabs=()), "scenarios")["scenario_id"].to_list() == ["tab_0", "tab_1", "tab_6", "tab_9"]
    with pytest.raises(DataError, match=r"no rows of the tabs \[3\]"):
        load(folder, tabs=(3,))


@pytest.mark.parametrize("seed", range(4))
def test_sampled_users_keep_all_their_rows(folder: Path, seed: int) -> None:
    config = kuairand.KuaiRandConfig(folder=folder, users=1, seed=seed, split=load(folder).schema.split)
    drawn = frame(kuairand.load(config), "impressions").drop("row_id")
    user = drawn["user_id"].unique().item()
    assert drawn.equals(frame(load(folder), "impressions").filter(user_id=user).drop("row_id"))


def test_bad_values_are_named(folder: Path) -> None:
    file = folder / "log_standard_4_22_to_5_08_pure.csv"
    file.write_text(file.read_text().replace(",1500,0,0", ",soon,0,0"))
    with pytest.raises(DataError, match=r"4_22_to_5_08_pure\.csv, column 'play_time_ms', data row 2: 'soon'"):
        load(folder)
    (folder / "user_features_pure.csv").unlink()
    file.write_text(file.read_text().replace("soon", "1"))
    with pytest.raises(DataError, match=r"no user_features"):
        load(folder)


def test_unknown_video_is_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "video_features_basic_pure.csv"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("10,")))
    with pytest.raises(DataError, match=r"impressions\.poi_id, row 0: '10' is not in pois"):
        load(folder).write(tmp_path / "sources")


def test_published_log(tmp_path: Path) -> None:
    root = os.environ.get("SCENERANK_DATA")
    if not root:
        pytest.skip("SCENERANK_DATA is not set: it names the folder that holds kuairand_pure")
    dataset = load(Path(root) / "kuairand_pure", tabs=())
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows.height == 93_926 - 2_718
    by_tab = {key[0]: part.height for key, part in rows.group_by("scenario_id")}
    assert by_tab["tab_1"] == 69_361 and len(by_tab) == 15
    assert dataset.schema.split.test == datetime(2022, 4, 29, 16, tzinfo=UTC)
