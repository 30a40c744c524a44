"""What every vector search must do, exact or approximate; the exact one is compared with numpy, the other with it."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.retriever import ApproximateSearch, ExactSearch, VectorSearch, vector_search
from trainers.index import IndexConfig, SearchPlan, build_index

ROWS, WIDTH = 3000, 12
KINDS = {"exact": IndexConfig(exact_up_to=ROWS), "ivf": IndexConfig(exact_up_to=0)}


def vectors(rows: int, seed: int) -> np.ndarray:
    """Unit vectors around 40 centres."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, WIDTH))
    drawn = centres[generator.integers(0, 40, rows)] + 0.4 * generator.normal(size=(rows, WIDTH))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


POIS, QUERIES = vectors(ROWS, 0), vectors(60, 1)
BUILT = {kind: build_index(POIS, vectors(200, 2), config) for kind, config in KINDS.items()}


def searcher(kind: str) -> VectorSearch:
    return vector_search(*BUILT[kind])


@pytest.fixture(params=sorted(KINDS))
def search(request: pytest.FixtureRequest) -> VectorSearch:
    return searcher(request.param)


def test_the_plan_decides_the_search() -> None:
    assert isinstance(searcher("exact"), ExactSearch) and isinstance(searcher("ivf"), ApproximateSearch)


def test_exact_is_exact() -> None:
    for query in QUERIES:
        rows, scores = searcher("exact").search(query, 50, None)
        assert np.allclose(scores, np.sort(POIS @ query)[::-1][:50], atol=1e-6)
        assert np.allclose(scores, POIS[rows] @ query, atol=1e-6)


def test_recall_is_as_measured(search: VectorSearch) -> None:
    exact = searcher("exact")
    hits = [np.intersect1d(search.search(q, 200, None)[0], exact.search(q, 200, None)[0]).size for q in QUERIES]
    assert np.mean(hits) / 200 >= 0.98  # the plan promises 0.99 on its own queries


def test_every_vector_finds_itself_first(search: VectorSearch) -> None:
    """A shift of row numbers by one, or L2 for inner product of unit vectors with a far copy, shows here."""
    for row in range(0, ROWS, 97):
        rows, scores = search.search(POIS[row], 3, None)
        assert rows[0] == row and scores[0] == pytest.approx(1.0, abs=1e-5)


def test_it_is_the_inner_product_and_not_the_distance() -> None:
    """The long vector has the largest product with the query, the short one the smallest distance."""
    pois = np.array([[1.0, 0.0], [5.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    query = np.array([1.0, 0.0], dtype=np.float32)
    for config in (IndexConfig(exact_up_to=3), IndexConfig(exact_up_to=0, recall_at=1)):
        rows, scores = vector_search(*build_index(pois, query[None], config)).search(query, 3, None)
        assert rows.tolist() == [1, 0, 2] and scores.tolist() == [5.0, 1.0, 0.0]


def test_scores_fall(search: VectorSearch) -> None:
    for query in QUERIES[:20]:
        assert (np.diff(search.search(query, 100, None)[1]) <= 0).all()


@pytest.mark.parametrize("k", [ROWS, ROWS + 1, 10 * ROWS])
def test_more_than_there_are_means_all(search: VectorSearch, k: int) -> None:
    rows, _ = search.search(QUERIES[0], k, None)
    assert sorted(rows.tolist()) == list(range(ROWS))


def test_nothing_allowed_finds_nothing(search: VectorSearch) -> None:
    rows, scores = search.search(QUERIES[0], 5, np.zeros(ROWS, dtype=bool))
    assert rows.shape == scores.shape == (0,)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    k=st.integers(1, 60),
    share=st.sampled_from([0.0005, 0.003, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_filters_act_inside_the_search(kind: str, data: st.DataObject, k: int, share: float, seed: int) -> None:
    """Only allowed rows, as many as there can be, and where all fit, exactly those of brute force."""
    allowed = np.random.default_rng(seed).random(ROWS) < share
    flipped = data.draw(arrays.arrays(np.int64, 3, elements=st.integers(0, ROWS - 1)))
    allowed[flipped] = True
    query = QUERIES[seed % len(QUERIES)]
    rows, scores = searcher(kind).search(query, k, allowed)
    assert len(rows) == len(set(rows.tolist())) == min(k, allowed.sum())
    assert allowed[rows].all()
    best = np.sort((POIS @ query)[allowed])[::-1][: len(rows)]
    if kind == "exact" or k >= allowed.sum():
        assert np.allclose(scores, best, atol=1e-6)
    else:
        assert np.isin(np.round(scores, 5), np.round(best, 5)).mean() >= 0.6


def test_filtered_recall_stays_high() -> None:
    exact, approximate, hits = searcher("exact"), searcher("ivf"), []
    for seed, query in enumerate(QUERIES):
        allowed = np.random.default_rng(seed).random(ROWS) < 0.1
        wanted = exact.search(query, 50, allowed)[0]
        hits.append(np.intersect1d(wanted, approximate.search(query, 50, allowed)[0]).size / 50)
    assert np.mean(hits) >= 0.98


def test_a_probe_too_few_is_made_good() -> None:
    """With one list probed, 500 results are more than a list holds: the search goes on, and returns all 500."""
    index, plan = BUILT["ivf"]
    assert plan.kind == "ivf" and plan.lists > 8
    rows, _ = ApproximateSearch(index, 1).search(QUERIES[0], 2500, None)
    assert len(rows) == 2500


def test_threads_may_share_a_search(search: VectorSearch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = [search.search(q, 20, None)[0].tolist() for q in QUERIES]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda q: search.search(q, 20, None)[0].tolist(), QUERIES))
    assert together == alone


def test_a_plan_of_an_exact_index_has_full_recall() -> None:
    assert BUILT["exact"][1] == SearchPlan(kind="exact", recall_at=200, recall=1.0)
    assert isinstance(BUILT["exact"][0], faiss.IndexFlat)
    assert BUILT["ivf"][1].recall >= 0.99
