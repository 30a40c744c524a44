"""The index artefact: POI vectors in FAISS, the query tower that asks them, and what filters need, as one inert folder.

    manifest.json      versions, search plan, metrics, SHA-256 of every other file
    inputs.json        encoding and place frame of the query tower
    query.safetensors  weights of the query tower
    index.faiss        POI vectors, searched by inner product
    pois.parquet       id, place, opening hours and scenarios of each FAISS row: ids are converted here and nowhere else

An exact search takes 0.3 ms at 10,000 POIs and 7 ms at 100,000 (112 numbers, one core), so it serves up to
`exact_up_to`; beyond, inverted lists (IVF) are probed, as many of them as reach `recall_floor` against the exact search
on held-out queries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch

from feature_repo import columns
from feature_repo.files import replacing
from trainers import faiss_file, inert
from trainers.models.tower import QueryTower, TowerConfig, TowerSizes
from trainers.plain import from_plain, to_plain
from trainers.tower_inputs import TowerInputs, degrees

FAISS: Any = faiss  # its type stubs lack the keyword arguments of its own Python layer
FORMAT = 2  # 1 did not know which scenarios may show a POI
MANIFEST, INPUTS, WEIGHTS, INDEX, POIS = FILES = (
    "manifest.json",
    "inputs.json",
    "query.safetensors",
    "index.faiss",
    "pois.parquet",
)
LIMITS = {
    MANIFEST: inert.MANIFEST_BYTES,
    INPUTS: inert.JSON_BYTES,
    WEIGHTS: inert.TABLE_BYTES,
    INDEX: inert.TABLE_BYTES,
    POIS: inert.TABLE_BYTES,
}
POI_SCHEMA = pa.schema(
    {
        columns.POI_ID: pa.string(),
        columns.POI_LATITUDE: pa.float64(),
        columns.POI_LONGITUDE: pa.float64(),
        columns.OPEN_HOURS: pa.string(),
        columns.SHOWN_IN: pa.list_(pa.string()),
    }
)
OPEN_HOURS_TEXT = "^([0-9a-fA-F]{42})?$"  # as `feature_repo.hours` writes them; empty: unknown
TRAINING_POINTS_PER_LIST = 64
MEASURED_QUERIES = 1000


class IndexArtefactError(ValueError):
    """An index cannot be built or loaded. The message names the file or row, the reason and the remedy."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """When to search exactly, and how good the search must be where it is not exact."""

    exact_up_to: int = 20_000
    recall_at: int = 200
    recall_floor: float = 0.99


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How an index is searched. `recall` is the measured share of the exact top `recall_at` that is found."""

    kind: Literal["exact", "ivf"]
    lists: int = 1
    probes: int = 1
    recall_at: int
    recall: float


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index was made from. `version` is a hash of its files, `metrics` the hit rates of its towers."""

    dataset: str
    trained_until: str
    seed: int
    tower: TowerConfig
    sizes: TowerSizes
    plan: SearchPlan
    knowledge_versions: Mapping[str, str]
    scene_fingerprints: Mapping[str, str]
    metrics: Mapping[str, Any]
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class IndexArtefact:
    """A trained query tower with the POIs that it can find; row i of `pois` is row i of `index`."""

    manifest: IndexManifest
    inputs: TowerInputs
    tower: QueryTower = field(repr=False)
    index: faiss.Index = field(repr=False)
    pois: pa.Table = field(repr=False)


def filter_columns(pois: pa.Table) -> pa.Table:
    """Of a POI source table, what an index keeps of each POI. Raises IndexArtefactError for a repeated id."""
    ids = pois[columns.POI_ID]
    if pc.count_distinct(ids, mode="all").as_py() != len(ids):
        counts = ids.combine_chunks().value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
        raise IndexArtefactError(f"POI {twice.as_py()!r} stands twice in the table of POIs; keys are unique")
    everywhere = columns.SHOWN_IN not in pois.column_names
    return pa.table(
        {
            columns.POI_ID: ids,
            columns.POI_LATITUDE: degrees(pois, columns.POI_LATITUDE),
            columns.POI_LONGITUDE: degrees(pois, columns.POI_LONGITUDE),
            columns.OPEN_HOURS: pois[columns.OPEN_HOURS],
            columns.SHOWN_IN: pa.nulls(len(pois)) if everywhere else pois[columns.SHOWN_IN],
        },
        schema=POI_SCHEMA,
    )


def build_index(poi_PE: np.ndarray, query_QE: np.ndarray, config: IndexConfig) -> tuple[faiss.Index, SearchPlan]:
    """Index P vectors, and measure the recall on Q held-out queries (at most 1,000 of them are used).

    Args:
        poi_PE, query_QE: float32, C-contiguous. Q >= 1 where an approximate index is needed.
    Raises:
        IndexArtefactError: no POI, a vector that is not finite, or no query to measure an approximate index with.
    """
    if not len(poi_PE) or not np.isfinite(poi_PE).all():
        bad = int(np.argmin(np.isfinite(poi_PE).all(axis=1))) if len(poi_PE) else None
        raise IndexArtefactError(
            "there is no POI to index" if bad is None else f"vector of POI row {bad} is not finite"
        )
    exact = faiss.IndexFlatIP(poi_PE.shape[1])
    exact.add(poi_PE)
    recall_at = min(config.recall_at, len(poi_PE))
    if len(poi_PE) <= config.exact_up_to:
        return exact, SearchPlan(kind="exact", recall_at=recall_at, recall=1.0)
    if not len(query_QE):
        raise IndexArtefactError(
            f"{len(poi_PE)} POIs need an approximate index, and that needs queries to measure with"
        )
    lists = min(2 ** round(np.log2(4 * np.sqrt(len(poi_PE)))), len(poi_PE))
    approximate = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(poi_PE.shape[1]), poi_PE.shape[1], lists, faiss.METRIC_INNER_PRODUCT
    )
    approximate.cp.max_points_per_centroid = TRAINING_POINTS_PER_LIST
    approximate.train(poi_PE)
    approximate.add(poi_PE)
    queries = query_QE[:MEASURED_QUERIES]
    wanted = exact.search(queries, recall_at)[1]
    probes = 1
    while (recall := _recall(approximate, queries, wanted, probes)) < config.recall_floor and probes < lists:
        probes *= 2
    return approximate, SearchPlan(kind="ivf", lists=lists, probes=probes, recall_at=recall_at, recall=recall)


def _recall(index: faiss.Index, queries: np.ndarray, wanted: np.ndarray, probes: int) -> float:
    parameters = FAISS.SearchParametersIVF(nprobe=probes)
    found = index.search(queries, wanted.shape[1], params=parameters)[1]
    hits = [len(np.intersect1d(row, best)) for row, best in zip(found, wanted, strict=True)]
    return float(np.sum(hits)) / wanted.size


def save(artefact: IndexArtefact, folder: Path) -> IndexManifest:
    """Write all files and put them in place at once; a failure leaves `folder` as it was. Returns the manifest."""
    weights = {name: value.contiguous() for name, value in artefact.tower.state_dict().items()}
    parquet = pa.BufferOutputStream()
    pq.write_table(artefact.pois, parquet, compression="zstd")
    contents = {
        INPUTS: artefact.inputs.to_json().encode(),
        WEIGHTS: safetensors.torch.save(weights),
        INDEX: FAISS.serialize_index(artefact.index).tobytes(),
        POIS: parquet.getvalue().to_pybytes(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = {**to_plain(artefact.manifest), "format": FORMAT, "files": hashes}
    manifest["version"] = version = _content_hash(manifest)
    contents[MANIFEST] = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    with replacing(folder) as staging:
        for name, content in contents.items():
            (staging / name).write_bytes(content)
    return replace(artefact.manifest, version=version)


def _content_hash(manifest: Mapping[str, Any]) -> str:
    """The hash of all that a manifest says but its version, and so of every file that it names."""
    said = {name: value for name, value in manifest.items() if name != "version"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def load(folder: Path) -> IndexArtefact:
    """Read and verify an artefact; what was hashed is what is read, and nothing in it is run.

    FAISS reads its file, and the tower takes its memory, once they are known to be what the manifest declares.

    Raises:
        IndexArtefactError: a missing, surplus, damaged or mismatched file, or another format.
    """
    raw, contents = _verified(folder)
    place = MANIFEST
    try:
        manifest = from_plain(IndexManifest, raw)
        inert.check_sizes(manifest.tower, "tower")
        place = INPUTS
        inputs = TowerInputs.from_json(contents[INPUTS].decode())
        if inputs.sizes != manifest.sizes:
            raise inert.Untrusted(f"is of towers with {inputs.sizes}, the manifest says {manifest.sizes}")
        place = WEIGHTS
        tower = _tower(manifest, contents[WEIGHTS])
        place = POIS
        pois = _pois(contents[POIS])
        place = INDEX
        plan = manifest.plan
        faiss_file.check(contents[INDEX], len(pois), tower.width, None if plan.kind == "exact" else plan.lists)
        if not 1 <= plan.probes <= plan.lists or (plan.kind == "exact" and plan.lists != 1):
            raise inert.Untrusted(f"is searched in {plan.probes} of {plan.lists} lists, the manifest says")
        index = FAISS.deserialize_index(np.frombuffer(contents[INDEX], dtype=np.uint8))
    except Exception as error:  # whatever parts bring about that do not fit, they cannot be used
        raise IndexArtefactError(f"{folder / place}: cannot be used: {error}; build the index again") from error
    return IndexArtefact(manifest=manifest, inputs=inputs, tower=tower, index=index, pois=pois)


def _tower(manifest: IndexManifest, weights: bytes) -> QueryTower:
    """The query tower with these weights, in eval mode."""
    with torch.device("meta"):
        outline = QueryTower(manifest.tower, manifest.sizes)
    state = inert.tensors_of(weights, inert.state_of(outline))
    tower = QueryTower(manifest.tower, manifest.sizes)
    tower.load_state_dict(state)
    return tower.eval()


def _pois(content: bytes) -> pa.Table:
    """The table of POIs. Raises ValueError where it is another one than `filter_columns` makes."""
    file = pq.ParquetFile(pa.BufferReader(content))
    groups = [file.metadata.row_group(at).total_byte_size for at in range(file.metadata.num_row_groups)]
    if file.schema_arrow.remove_metadata() != POI_SCHEMA or not sum(groups) <= inert.TABLE_BYTES:
        raise inert.Untrusted(f"columns {POI_SCHEMA.names} are needed, of at most {inert.TABLE_BYTES} bytes")
    pois = file.read()
    ids, hours = pois[columns.POI_ID], pois[columns.OPEN_HOURS]
    if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise inert.Untrusted("every POI needs an id of its own")
    if not pc.all(pc.match_substring_regex(hours, OPEN_HOURS_TEXT), min_count=0).as_py():
        raise inert.Untrusted("opening hours are 42 hexadecimal digits")
    _check_scenarios(pois[columns.SHOWN_IN].combine_chunks())
    return pois


def _check_scenarios(shown_in_P: pa.ListArray) -> None:
    """Raises ValueError for scenarios without an id, and for more than there is memory for: each takes a byte a POI."""
    shown_in_P.validate(full=True)  # that they are text, too
    ids = shown_in_P.flatten()
    if ids.null_count:
        raise inert.Untrusted("every scenario needs an id")
    scenarios = pc.count_distinct(ids).as_py()
    if scenarios * len(shown_in_P) > inert.TABLE_BYTES:
        raise inert.Untrusted(f"{scenarios} scenarios of {len(shown_in_P)} POIs are too many")


def _verified(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest as JSON and the contents of the other files, hashes compared."""
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if present != sorted(FILES):
        raise IndexArtefactError(f"{folder}: holds {present}, an index artefact is {sorted(FILES)}; build it again")
    contents = {}
    for name, limit in LIMITS.items():
        try:
            contents[name] = inert.content_of(folder / name, limit)
        except inert.Untrusted as error:
            raise IndexArtefactError(f"{folder / name}: {error}; build the index again") from error
    try:
        raw: dict[str, Any] = inert.json_of(contents.pop(MANIFEST))
        said = _content_hash(raw)
        found, hashes = raw.pop("format"), dict(raw.pop("files"))
    except Exception as error:  # whatever it is, it is no manifest
        raise IndexArtefactError(f"{folder / MANIFEST}: is no manifest: {error!r}; build the index again") from error
    if found != FORMAT:
        raise IndexArtefactError(f"{folder}: has format {found!r}, this program reads {FORMAT}; build the index again")
    if raw.get("version") != said:
        raise IndexArtefactError(f"{folder / MANIFEST}: damaged: its content has hash {said}, not {raw.get('version')}")
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != hashes.get(name):
            raise IndexArtefactError(f"{folder / name}: does not have the hash that the manifest names; it is damaged")
    return raw, contents
