"""The index artefact: what is saved comes back, whatever is not as written is refused, and recall is measured."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from feature_repo import columns
from trainers.encoding import Encoding, Scaler, Vocabulary
from trainers.index import (
    FILES,
    IndexArtefact,
    IndexArtefactError,
    IndexConfig,
    IndexManifest,
    build_index,
    filter_columns,
    load,
    save,
)
from trainers.models.tower import QueryTower, TowerConfig
from trainers.tower_inputs import PlaceFrame, TowerInputs

POIS = 9
SHOWN_IN = [None, [], ["search"], ["search", "lunch"], *[None] * 5]


def pois(ids: list[str] | None = None) -> pa.Table:
    return pa.table(
        {
            columns.POI_ID: ids or [f"p{i}" for i in range(POIS)],
            columns.CATEGORY: ["cafe"] * POIS,
            columns.OPEN_HOURS: pa.array([None, *["0" * 42] * (POIS - 1)], pa.string()),
            columns.SHOWN_IN: pa.array(SHOWN_IN, pa.large_list(pa.large_string())),
            columns.POI_LATITUDE: pa.array([None, *(60.0 + i for i in range(1, POIS))], pa.float64()),
            columns.POI_LONGITUDE: pa.array([25.0] * POIS, pa.float64()),
        }
    )


def unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def artefact(seed: int = 0) -> IndexArtefact:
    vocabularies = {columns.USER_ID: Vocabulary(("u",)), columns.POI_ID: Vocabulary(("p1", "p2"))}
    encoding = Encoding(
        timezone="UTC",
        user_columns=(columns.USER_ID,),
        poi_columns=(columns.POI_ID,),
        scene_features=(),
        text_spaces=(),
        vocabularies=vocabularies,
        scalers={"log_hours_since_order": Scaler(0.0, 1.0, -9.0, 9.0)},
        rates=(0.1, 0.1),
    )
    inputs = TowerInputs(encoding, PlaceFrame.fit(pois()))
    config = TowerConfig(embedding=2, hidden=4, taste=3)
    torch.manual_seed(seed)
    sizes = inputs.sizes
    tower = QueryTower(config, sizes).eval()
    index, plan = build_index(unit(POIS, tower.width), unit(2, tower.width), IndexConfig())
    manifest = IndexManifest(
        dataset="hand-made",
        trained_until="2015-05-01T00:00:00+00:00",
        seed=seed,
        tower=config,
        sizes=sizes,
        plan=plan,
        knowledge_versions={"poi_text": "v1"},
        scene_fingerprints={},
        metrics={"hit_rate": {"towers": {"20": 0.5}}},
    )
    return IndexArtefact(manifest=manifest, inputs=inputs, tower=tower, index=index, pois=filter_columns(pois()))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    before = artefact()
    manifest = save(before, tmp_path / "index")
    after = load(tmp_path / "index")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == sorted(FILES)
    assert after.manifest == manifest and len(manifest.version) == 16
    assert after.pois[columns.POI_ID].to_pylist() == [f"p{i}" for i in range(POIS)]
    assert np.isnan(after.pois[columns.POI_LATITUDE].to_numpy()[0])
    assert after.pois[columns.SHOWN_IN].to_pylist() == SHOWN_IN
    vectors = [a.index.reconstruct_n(0, POIS) for a in (before, after)]
    assert np.array_equal(*vectors)
    table = pa.table({columns.USER_ID: ["u", None], "event_time_us": [0, 0]})
    queries = [a.tower(a.inputs.query(table)) for a in (before, after)]
    assert torch.equal(*queries) and not after.tower.training


def test_a_new_index_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    first = save(artefact(0), tmp_path / "index")
    second = save(artefact(1), tmp_path / "index")
    assert load(tmp_path / "index").manifest.version == second.version != first.version
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "index"
    save(artefact(), folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(IndexArtefactError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    save(artefact(), tmp_path / "index")
    (tmp_path / "index" / name).unlink()
    with pytest.raises(IndexArtefactError, match="build it again"):
        load(tmp_path / "index")


def test_a_surplus_file_and_no_folder_are_refused(tmp_path: Path) -> None:
    save(artefact(), tmp_path / "index")
    (tmp_path / "index" / "model.pkl").write_bytes(b"")
    with pytest.raises(IndexArtefactError, match=r"model\.pkl"):
        load(tmp_path / "index")
    with pytest.raises(IndexArtefactError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(("key", "value"), [("format", 3), ("surprise", 1), ("seed", "0"), ("files", {})])
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, key: str, value: object) -> None:
    save(artefact(), tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(IndexArtefactError):
        load(tmp_path / "index")


def test_an_index_of_the_format_before_is_to_be_built_again(tmp_path: Path) -> None:
    save(artefact(), tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(IndexArtefactError, match="has format 1, this program reads 2; build the index again"):
        load(tmp_path / "index")


def test_pois_that_name_no_scenarios_may_be_shown_in_all() -> None:
    kept = filter_columns(pois().drop_columns([columns.SHOWN_IN]))
    assert kept.schema == filter_columns(pois()).schema and kept[columns.SHOWN_IN].null_count == POIS


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    whole = artefact()
    width = whole.tower.width
    euclidean = faiss.IndexFlatL2(width)
    euclidean.add(unit(POIS, width))
    wrong = {
        "inner-product": euclidean,
        "vectors for": build_index(unit(POIS + 1, width), unit(1, width), IndexConfig())[0],
        "numbers": build_index(unit(POIS, width + 1), unit(1, width + 1), IndexConfig())[0],
    }
    for reason, index in wrong.items():
        save(IndexArtefact(**{**vars(whole), "index": index}), tmp_path / "index")
        with pytest.raises(IndexArtefactError, match=reason):
            load(tmp_path / "index")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = artefact()
    with torch.no_grad():
        broken.tower.hidden.weight[0, 0] = torch.nan
    save(broken, tmp_path / "index")
    with pytest.raises(IndexArtefactError, match="not finite"):
        load(tmp_path / "index")


def test_a_repeated_poi_is_named() -> None:
    with pytest.raises(IndexArtefactError, match="'p3' stands twice"):
        filter_columns(pois(["p0", "p1", "p2", "p3", "p4", "p5", "p3", "p7", "p8"]))


def test_what_cannot_be_indexed_is_named() -> None:
    vectors = unit(5, 4)
    vectors[3, 2] = np.nan
    with pytest.raises(IndexArtefactError, match="row 3 is not finite"):
        build_index(vectors, unit(1, 4), IndexConfig())
    with pytest.raises(IndexArtefactError, match="no POI"):
        build_index(unit(0, 4), unit(1, 4), IndexConfig())
    with pytest.raises(IndexArtefactError, match="needs queries"):
        build_index(unit(5, 4), unit(0, 4), IndexConfig(exact_up_to=0))


def test_more_probes_are_taken_until_the_recall_is_reached() -> None:
    poi, query = unit(4000, 16), unit(50, 16, seed=1)
    low = build_index(poi, query, IndexConfig(exact_up_to=0, recall_floor=0.5))[1]
    high = build_index(poi, query, IndexConfig(exact_up_to=0, recall_floor=0.99))[1]
    assert low.probes < high.probes <= high.lists == low.lists == 256
    assert 0.5 <= low.recall < 0.99 <= high.recall


def test_the_stored_recall_is_the_share_found() -> None:
    poi, query = unit(2000, 8), unit(20, 8, seed=1)
    index, plan = build_index(poi, query, IndexConfig(exact_up_to=0, recall_at=10, recall_floor=0.6))
    index.nprobe = plan.probes
    best = np.argsort(-(query @ poi.T), axis=1)[:, :10]
    hits = sum(np.isin(found, row).sum() for found, row in zip(index.search(query, 10)[1], best, strict=True))
    assert plan.recall == pytest.approx(hits / 200)
