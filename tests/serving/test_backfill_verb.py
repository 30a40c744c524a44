"""`scenerank backfill`, as a person runs it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import Schema


def pulled(said) -> pa.Table:
    assert said.exit_code == 0, said.output
    folder = Path("".join(said.output.split("rows/s)")[1].split()))
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def test_rows_of_ones_own_have_the_values_that_the_log_has_for_them(city, scenerank, tmp_path):
    split = Schema.load(city.workspace.schema).split
    log = pulled(scenerank("backfill", "--model", "larr", "--from", f"{split.test:%Y-%m-%dT%H:%M:%S}"))
    assert len(log) >= 1000
    impressions = pq.read_table(city.workspace.source("impressions"))
    later = pc.greater_equal(impressions[columns.EVENT_TIMESTAMP], split.test)
    own = impressions.filter(later).take(pa.array(range(0, 900, 13)))
    # In an order of their own, and under ids of their own.
    own = own.take(pa.array(reversed(range(len(own)))))
    theirs = own[columns.ROW_ID]
    own = own.set_column(own.schema.get_field_index(columns.ROW_ID), columns.ROW_ID, pa.array(range(len(own))))
    pcsv.write_csv(own, tmp_path / "rows.csv")
    found = pulled(scenerank("backfill", "--model", "larr", "--entities", str(tmp_path / "rows.csv")))
    expected = log.take(pc.index_in(theirs, value_set=log[columns.ROW_ID]))
    assert len(found) == 70 and found.column_names == expected.column_names
    for name in set(found.column_names) - {columns.ROW_ID}:
        assert found[name].combine_chunks().equals(expected[name].combine_chunks()), name
    assert len(set(found[columns.RECENT_POIS].combine_chunks().to_pandas().astype(str))) > 5
