import numpy as np
import pyarrow.parquet as pq

from benchmarks.experiments import worlds
from benchmarks.experiments.city import CityWorld
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import HashedWords, hashed_words
from feature_repo import columns
from feature_repo.workspace import Workspace
from trainers.knowledge import load_matrix


def test_rows_without_vectors_are_those_that_embedding_writes(city, tmp_path):
    """Keys, times, rows and texts are the same: vectors of any kind can take each other's place."""
    workspace = Workspace(tmp_path)
    workspace.sources.symlink_to(city.workspace.sources)
    for space in columns.KNOWLEDGE:
        worlds.write_rows(workspace, space)
        names = [
            columns.KNOWLEDGE[space],
            columns.EVENT_TIMESTAMP,
            columns.CREATED_TIMESTAMP,
            *(columns.knowledge(space, field) for field in (columns.ROW, columns.TEXT, columns.TEXT_HASH)),
        ]
        ours, embedded = (
            pq.read_table(w.knowledge / f"{space}.parquet", columns=names).sort_by(names[3])
            for w in (workspace, city.workspace)
        )
        assert ours.equals(embedded)


def test_a_matrix_has_the_vector_of_each_text_in_its_row(city, tmp_path):
    prepared = worlds.Prepared(city.workspace, None, None, None, None, None, None)
    matrix = prepared.matrix("poi_text", HashedWords(width=64), Places(scratch=tmp_path, results=tmp_path))
    stored = load_matrix(city.workspace.knowledge / "poi_text.parquet")
    assert matrix.keys.equals(stored.keys)
    np.testing.assert_array_equal(matrix.rows, stored.rows)
    assert not matrix.matrix[0].any()
    rows, texts = worlds.texts_of_rows(city.workspace, "poi_text")
    np.testing.assert_array_equal(matrix.matrix[rows[5]], hashed_words(texts[5:6], 64)[0])


def test_worlds_of_other_classes_differ_though_their_fields_agree():
    class OtherWorld(CityWorld):
        pass

    assert worlds.plain_hash(CityWorld()) != worlds.plain_hash(OtherWorld())
