"""The shipped mapping files, each on tiny files with the names and columns of its set."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from feature_repo.datasets import mapping
from feature_repo.datasets.choose import DatasetName, Options, choose
from feature_repo.datasets.schema import DataError, Dataset
from tests.feature_repo.datasets import public_sets
from tests.feature_repo.datasets.public_sets import found, shown, video, watched

DAYS = [f"2023-05-{day}" for day in range(22, 32)]
MAY_2014 = 1_399_852_800  # 12 May, midnight UTC
DAY = 86_400


def load(name: DatasetName, folder: Path, users: int | None = None) -> Dataset:
    return choose(name, Options(source=folder, users=users)).load(lambda what, done, total: None)


def frame(dataset: Dataset, table: str) -> pl.DataFrame:
    read = pl.from_arrow(dataset.tables[table])
    assert isinstance(read, pl.DataFrame)
    return read


def test_every_shipped_mapping_has_a_name_on_the_command_line():
    assert set(mapping.shipped()) <= {name.value for name in DatasetName}


@pytest.fixture
def kuaisar(tmp_path: Path) -> Path:
    recommended = [watched(1, 100 + at, at % 2, f"{day} 08:00:00") for at, day in enumerate(DAYS)]
    searched = [
        found(2, 100, 0, 1, "2023-05-29 21:58:52"),
        found(2, 900, 3, 1, "2023-05-29 21:58:52"),
        found(1, 101, 1, 1, "2023-05-30 07:00:00"),
    ]
    public_sets.kuaisar(
        tmp_path, recommended, searched, [video(100 + at, "Funny", f"Joke {at % 3}") for at in range(10)]
    )
    return tmp_path


def test_kuaisar_has_two_scenarios_from_two_files(kuaisar: Path, tmp_path: Path) -> None:
    dataset = load(DatasetName.KUAISAR, kuaisar)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows["scenario_id"].value_counts().sort("scenario_id").rows() == [("recommendation", 10), ("search", 3)]
    search = rows.filter(scenario_id="search")
    assert search["click"].to_list() == [0, 1, 1], "a search counts clicks, of which one is enough"
    assert search["event_timestamp"][0] == datetime(2023, 5, 29, 13, 58, 52, tzinfo=UTC), "Beijing is UTC+8"
    assert search["request_id"].n_unique() == 2, "the same session id of two users is two requests"
    assert search["search_source"].unique().to_list() == ["USER_INPUT"]
    assert rows.filter(scenario_id="recommendation")["search_source"].null_count() == 10
    split = dataset.schema.split
    assert split.test == datetime(2023, 5, 30, 16, tzinfo=UTC), "the last day in Beijing"
    assert split.valid == datetime(2023, 5, 29, 16, tzinfo=UTC) and split.train == datetime(2023, 5, 25, 16, tzinfo=UTC)


def test_kuaisar_items_are_told_in_words_and_unlisted_ones_are_kept(kuaisar: Path) -> None:
    pois = frame(load(DatasetName.KUAISAR, kuaisar), "pois")
    assert pois.height == 11
    listed, unlisted = pois.filter(poi_id="101"), pois.filter(poi_id="900")
    assert listed["text"].item() == "A short video. Kind: Funny, Joke 1, empty, empty."
    assert listed["category"].item() == "Funny" and listed["author_id"].item() == "10"
    assert unlisted["category"].item() == "unknown" and unlisted["author_id"].item() is None
    assert unlisted["name"].item() == "900"


def test_a_bad_row_of_the_second_file_is_named_by_its_own_file_column_and_row(kuaisar: Path) -> None:
    log = kuaisar / "src_inter.csv"
    log.write_text(log.read_text().replace("2023-05-30 07:00:00", "soon"))
    with pytest.raises(DataError, match=r"src_inter\.csv, column 'search_session_time', data row 3: 'soon'"):
        load(DatasetName.KUAISAR, kuaisar)


def test_fewer_users_bring_their_own_rows_alone(kuaisar: Path) -> None:
    whole, thinned = (load(DatasetName.KUAISAR, kuaisar, users) for users in (None, 1))
    kept = frame(thinned, "users")["user_id"].to_list()
    assert len(kept) == 1
    expected = frame(whole, "impressions").filter(pl.col("user_id").is_in(kept)).drop("row_id")
    assert frame(thinned, "impressions").drop("row_id").equals(expected)
    assert frame(thinned, "pois").height == expected["poi_id"].n_unique()


def test_a_bad_row_keeps_its_number_when_users_are_drawn(kuaisar: Path) -> None:
    rows = [watched(1 + at % 2, 100 + at, 1, f"{day} 08:00:00") for at, day in enumerate(DAYS)]
    public_sets.kuaisar(kuaisar, [row.replace("1,2023-05-3", "yes,2023-05-3") for row in rows], [], [])
    with pytest.raises(DataError, match=r"rec_inter\.csv, column 'click', data row (9|10): 'yes' is not a number"):
        load(DatasetName.KUAISAR, kuaisar, 1)


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    early, late = MAY_2014 - 365 * DAY, MAY_2014
    public_sets.amazon(
        tmp_path,
        [
            [("ann", "B1", 5.0, early), ("bob", "B1", 3.0, MAY_2014 - 30 * DAY)],
            [("ann", "C1", 4.0, early), ("cid", "C2", 1.0, late)],
            [("bob", "B1", 2.0, MAY_2014 - 60 * DAY), ("ann", "H1", 5.0, late)],
        ],
    )
    public_sets.amazon_metadata(
        tmp_path,
        [
            [{"asin": "B1", "title": "Shampoo, 8 oz", "price": 5.99, "categories": [["Beauty", "Hair Care"]]}],
            [{"asin": "C1", "categories": [["Clothing", "Boots"], ["Shoes"]], "related": {"also_bought": ["C2"]}}],
            [
                {"asin": "B1", "title": "The same again", "brand": "Lux", "categories": [["Health"]]},
                {"asin": "unseen", "title": "Nobody's", "categories": [["Health"]]},
            ],
        ],
    )
    return tmp_path


def test_amazon_has_a_scenario_for_each_category_and_the_split_of_diff_msr(amazon: Path, tmp_path: Path) -> None:
    dataset = load(DatasetName.AMAZON, amazon)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows.select("user_id", "poi_id", "scenario_id", "click").rows() == [
        ("ann", "B1", "beauty", 1),
        ("ann", "C1", "clothing", 1),
        ("bob", "B1", "health", 0),
        ("bob", "B1", "beauty", 0),
        ("ann", "H1", "health", 1),
        ("cid", "C2", "clothing", 0),
    ]
    split = dataset.schema.split
    parts = [sum(t < border for t in rows["event_timestamp"]) for border in (split.train, split.valid, split.test)]
    assert parts == [2, 2, 4], "history of 2013, none in the train part, two in March and April, two in May"
    assert frame(dataset, "pois")["text"].unique().to_list() == ["A product."]


def test_amazon_titles_come_from_metadata_whose_lines_are_python_literals(amazon: Path) -> None:
    pois = frame(load(DatasetName.AMAZON_TITLES, amazon), "pois").sort("poi_id")
    assert pois["poi_id"].to_list() == ["B1", "C1", "C2", "H1"], "those that were reviewed, each once"
    assert pois["text"].to_list() == [
        "Shampoo, 8 oz. Kind: Beauty, Hair Care.",
        "unknown. Kind: Clothing, Boots; Shoes.",
        "unknown. Kind: unknown.",
        "unknown. Kind: unknown.",
    ]
    assert pois["name"].to_list() == ["Shampoo, 8 oz", "C1", "C2", "H1"]


def test_a_misspelt_column_of_python_literals_is_named(amazon: Path, tmp_path: Path) -> None:
    shipped = mapping.shipped()["amazon_titles"].read_text()
    file = tmp_path / "misspelt.yaml"
    file.write_text(shipped.replace("title", "titel"))
    with pytest.raises(DataError, match=r"no column 'titel'; did you mean 'title'\?"):
        mapping.load(mapping.MappingConfig(file=file, folder=amazon))


def test_metadata_that_is_code_is_refused_and_not_run(amazon: Path) -> None:
    trap = amazon / "ran"
    public_sets.amazon_metadata(amazon, [[], [], []])
    with gzip.open(amazon / "meta_Beauty.json.gz", "wt") as lines:
        lines.write(f"{{'asin': 'B1', 'title': open({str(trap)!r}, 'w')}}\n")
    with pytest.raises(DataError, match=r"meta_Beauty\.json\.gz, line 1: .* is no JSON object"):
        load(DatasetName.AMAZON_TITLES, amazon)
    assert not trap.exists()


@pytest.fixture
def ali_ccp(tmp_path: Path) -> Path:
    public_sets.ali_ccp(
        tmp_path,
        {
            "train": [shown(1, 1, 1, 5, 1), shown(0, 0, 1, 6, 3), shown(0, 0, 2, 5, 2), shown(1, 0, 2, 7, 3)],
            "val": [shown(0, 0, 1, 7, 1), shown(0, 1, 2, 5, 3)],
            "test": [shown(1, 0, 1, 8, 3), shown(0, 0, 3, 5, 1)],
        },
    )
    return tmp_path


def test_ali_ccp_parts_are_its_files_and_say_that_their_times_are_invented(ali_ccp: Path, tmp_path: Path) -> None:
    dataset = load(DatasetName.ALI_CCP, ali_ccp)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    split = dataset.schema.split
    parts = {}
    for part in ("history", "train", "valid", "test"):
        start, end = split.bounds(part)
        mine = rows.filter(pl.col("event_timestamp").is_between(start or datetime(1970, 1, 1, tzinfo=UTC), end, "left"))
        assert mine["event_timestamp"].n_unique() == 1, "nothing is before anything else of its part"
        parts[part] = mine.select("user_id", "poi_id").sort("poi_id").rows()
    assert parts == {
        "history": [("1", "5"), ("2", "5")],
        "train": [("1", "6"), ("2", "7")],
        "valid": [("1", "7")],
        "test": [("3", "5"), ("1", "8")],
    }
    assert rows["order"].sum() == 1 and sorted(rows["scenario_id"].unique()) == ["1", "2", "3"]
    assert "Orders without a click that were left out: 1." in dataset.schema.notes
    assert "invented" in dataset.schema.notes
    assert frame(dataset, "pois").filter(poi_id="8")["item_207"].item() == "78"


def test_an_order_without_a_click_is_refused_unless_a_mapping_drops_it(ali_ccp: Path) -> None:
    own = ali_ccp / "own.yaml"
    own.write_text(
        mapping.shipped()["ali_ccp"].read_text().replace("unclicked_orders: drop", "unclicked_orders: refuse")
    )
    wanted = r"ali_ccp_val_sample\.csv, column 'purchase', data row 2: '1' is an order without a click"
    with pytest.raises(DataError, match=wanted):
        mapping.load(mapping.MappingConfig(file=own))


# (what stands in the mapping file, what in its place, what the message must contain)
WRONG_FILES = {
    "renamed column": ("search_session_time: time", "session_time: time", ["src_inter.csv", "'session_time'"]),
    "taken name": ("add: {surface: search}", "add: {surface: search, keyword: x}", ["src_inter.csv", "['keyword']"]),
    "misspelt key": ("add: {surface: search}", "ad: {surface: search}", ["log.1.ad", "did you mean 'add'"]),
    "offset": ("file: rec_inter.csv,", "file: rec_inter.csv, every: 2, offset: 2,", ["log.0", "from 0 to every - 1"]),
    "two ways to split": ("{by: days}", "{by: days, fractions: [0.4, 0.4, 0.1, 0.1]}", ["split", "fractions, by"]),
    "too few days": ("{by: days}", "{by: months}", ["4 months"]),
    "other table": ("item_features.csv", "items.csv", ["items.csv", "no such file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_mistake_in_a_list_of_files_is_named(kuaisar: Path, name: str) -> None:
    old, new, wanted = WRONG_FILES[name]
    text = mapping.shipped()["kuaisar"].read_text()
    assert old in text
    own = kuaisar / "own.yaml"
    own.write_text(text.replace(old, new))
    with pytest.raises(DataError) as error:
        mapping.load(mapping.MappingConfig(file=own))
    for words in wanted:
        assert words in str(error.value)


def test_what_a_log_shows_must_be_in_the_table_unless_the_mapping_says_otherwise(kuaisar: Path) -> None:
    own = kuaisar / "own.yaml"
    own.write_text(mapping.shipped()["kuaisar"].read_text().replace("which: shown", "which: all"))
    with pytest.raises(DataError, match=r"src_inter\.csv, column 'item_id', data row 2: '900' is not in item_features"):
        mapping.load(mapping.MappingConfig(file=own))
