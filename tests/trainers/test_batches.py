from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from trainers.batch import Batch
from trainers.batches import InMemory, whole_lists
from trainers.encoding import Encoding


def test_a_piece_ends_where_a_list_does() -> None:
    group = torch.tensor([5, 5, 5, 1, 1, 4, 4, 4, 4, 4])
    pieces = [piece.tolist() for piece in whole_lists(torch.arange(10), group, 5)]
    assert pieces == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [piece.tolist() for piece in whole_lists(torch.arange(10), group, 4)] == [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    assert list(whole_lists(torch.arange(0), group[:0], 4)) == []


@pytest.fixture(scope="module")
def batch(pull: pa.Table, pull_schema: Schema) -> Batch:
    """Of 200 rows in five's; every third request was drawn with probability one half."""
    table = pull.slice(0, 200)
    request = [row // 5 for row in range(200)]
    table = table.append_column(columns.REQUEST_ID, pa.array([f"r{r}" for r in request]))
    table = table.append_column(columns.PROPENSITY, pa.array([None if r % 3 else 0.5 for r in request], pa.float64()))
    return Batch.from_arrow(table, Encoding.fit(pull, pull_schema))


def test_steps_of_lists_are_those_of_an_epoch(batch: Batch) -> None:
    """Lists of five at most eight a batch: forty batches of one list, where rows alone would fill twenty-five."""
    lists = InMemory(batch, lists=True)
    assert lists.steps(8) == len(list(lists.epoch(8, torch.Generator().manual_seed(0)))) == 40
    assert InMemory(batch).steps(8) == 25


def test_rows_know_their_request_and_how_they_were_drawn(batch: Batch) -> None:
    assert batch.request_B is not None and batch.log_q_B is not None
    assert batch.request_B.tolist() == [row // 5 for row in range(200)]
    assert torch.exp(batch.log_q_B[:20:5]).tolist() == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_lists_stay_whole_and_come_in_another_order_each_epoch(batch: Batch) -> None:
    lists, generator = InMemory(batch, lists=True), torch.Generator().manual_seed(0)
    epochs = []
    for _ in range(2):
        seen = []
        for part in lists.epoch(23, generator):
            assert part.request_B is not None and len(part) <= 23
            assert torch.bincount(part.request_B).unique().tolist() in ([5], [0, 5])
            seen += part.request_B[::5].tolist()
        assert sorted(seen) == list(range(40))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_lists_need_requests(batch: Batch) -> None:
    with pytest.raises(ValueError, match="names no requests"):
        next(InMemory(replace(batch, request_B=None), lists=True).epoch(10, torch.Generator()))
