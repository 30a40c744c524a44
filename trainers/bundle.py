"""Bundle: a trained ranker on disk with everything that answering needs, and nothing that runs code on load.

    manifest.json             what it is, and the SHA-256 of every other file
    encoding.json schema.json vocabularies, scalers; what the data set has
    weights.safetensors       the ranker's state; its network is rebuilt from the recipe in the manifest
    vectors/<space>.safetensors, vectors/<space>.keys.json    each vector space that the ranker reads
    certificate.json          beside the content, once `prove` was run: what was proved of this version

The version is the hash of the manifest, so of all content: same training, same version. Loading reads JSON and
safetensors only, and refuses a folder of which one bit, one file or one name is not as written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.files import replacing
from trainers import inert
from trainers.encoding import Encoding
from trainers.knowledge import SCENE_SPACE, VectorMatrix
from trainers.models.embedding import InputSizes
from trainers.models.ranker import Ranker
from trainers.plain import from_plain, to_plain
from trainers.recipes import Recipe

FORMAT = 1
MANIFEST = "manifest.json"
CERTIFICATE = "certificate.json"
FILE_NAME = re.compile(r"(encoding\.json|schema\.json|weights\.safetensors|vectors/[a-z_]+\.(safetensors|keys\.json))")


class BundleError(ValueError):
    """A bundle cannot be used. The message names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle is and what it needs.

    Attributes:
        version: hash of all else in the manifest, and so of every file.
        service: the FeatureService whose columns the ranker reads. features: their references, `view:feature`.
        scene_fingerprints: of each scene feature's declaration at training time.
        knowledge_versions: of each vector space that the ranker reads.
        trained_until: no training row is later; what a ranker knows is as old as this.
        metrics: of the test part, evaluated once.
    """

    format: int = FORMAT
    version: str = ""
    model: str
    service: str
    features: tuple[str, ...]
    scene_fingerprints: Mapping[str, str]
    knowledge_versions: Mapping[str, str]
    dataset: str
    trained_until: datetime
    seed: int
    recipe: Recipe
    metrics: Mapping[str, Any]
    runtime: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    def content_hash(self) -> str:
        plain = to_plain(replace(self, version=""))
        return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A ranker in eval mode with all that it takes to feed it."""

    manifest: Manifest
    encoding: Encoding
    schema: Schema
    ranker: Ranker
    matrices: Mapping[str, VectorMatrix]

    @staticmethod
    def of(
        manifest: Manifest, encoding: Encoding, schema: Schema, ranker: Ranker, matrices: Mapping[str, VectorMatrix]
    ) -> Bundle:
        """Close a bundle: hash its files and set its version."""
        manifest = from_plain(Manifest, to_plain(manifest))  # as it will be read: 0 and 0.0 hash differently
        draft = Bundle(manifest=manifest, encoding=encoding, schema=schema, ranker=ranker.eval(), matrices=matrices)
        files = {name: hashlib.sha256(content).hexdigest() for name, content in draft._files().items()}
        closed = replace(manifest, files=files)
        return replace(draft, manifest=replace(closed, version=closed.content_hash()))

    def save(self, folder: Path) -> None:
        """Write to `folder` at once: there is the whole bundle or, after a failure, what was there before."""
        with replacing(folder) as staging:
            for name, content in self._files().items():
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_bytes(content)
            text = json.dumps(to_plain(self.manifest), indent=1, ensure_ascii=False)
            (staging / MANIFEST).write_text(text + "\n")

    def _files(self) -> dict[str, bytes]:
        """The content of every file but the manifest, the same bytes for the same bundle."""
        files = {
            "encoding.json": self.encoding.to_json().encode(),
            "schema.json": self.schema.to_json().encode(),
            "weights.safetensors": safetensors.torch.save(
                {name: value.contiguous() for name, value in self.ranker.state_dict().items()}
            ),
        }
        for space, vectors in self.matrices.items():
            arrays = {"matrix": vectors.matrix, "rows": vectors.rows, "available_at": vectors.available_at}
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            files[f"vectors/{space}.safetensors"] = safetensors.torch.save(tensors)
            files[f"vectors/{space}.keys.json"] = json.dumps(vectors.keys.to_pylist(), ensure_ascii=False).encode()
        return files


def input_sizes(encoding: Encoding) -> InputSizes:
    """The tensor sizes of an encoding's batches, for the networks."""
    return InputSizes(
        cardinalities=encoding.cardinalities(encoding.categorical_columns),
        user_fields=len(encoding.user_columns),
        numbers=len(encoding.scalers),
        scene_cardinalities=encoding.cardinalities([columns.scene(name) for name in encoding.scene_features]),
        text_spaces=encoding.text_spaces,
        scene_space=SCENE_SPACE,
    )


def spaces_of(config: Ranker.Config) -> tuple[str, ...]:
    """The vector spaces that a ranker of this configuration reads."""
    scene = (SCENE_SPACE,) if config.reads_scene_vectors else ()
    known = config.knowledge.spaces if config.knowledge else ()
    return tuple(dict.fromkeys((*config.features.text_spaces, *scene, *known)))


def build_ranker(config: Ranker.Config, encoding: Encoding, matrices: Mapping[str, VectorMatrix]) -> Ranker:
    """A ranker with fresh weights. Raises ValueError where a vector space that it reads is absent."""
    tensors: dict[str, Tensor] = {space: torch.from_numpy(vectors.matrix) for space, vectors in matrices.items()}
    return Ranker(config, input_sizes(encoding), tensors)


def load(folder: Path) -> Bundle:
    """Read and verify a bundle. Raises BundleError naming file and reason; runs no code from the folder.

    Files larger than `trainers.inert` allows are not read, and no network is built that the weights are not made for.
    """
    manifest = _manifest(folder)
    contents = {name: _verified(folder, name, digest) for name, digest in manifest.files.items()}
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    surplus = sorted(present - set(contents) - {MANIFEST, CERTIFICATE})
    if surplus:
        raise BundleError(f"{folder}: files that the manifest does not name: {surplus}")
    spaces = sorted(manifest.knowledge_versions)
    wanted = {"encoding.json", "schema.json", "weights.safetensors"}
    wanted |= {f"vectors/{space}.{ending}" for space in spaces for ending in ("safetensors", "keys.json")}
    if wanted != set(contents):
        raise BundleError(f"{folder / MANIFEST}: names files {sorted(contents)} where {sorted(wanted)} are needed")
    try:
        encoding = Encoding.from_json(contents["encoding.json"].decode())
        schema = from_plain(Schema, inert.json_of(contents["schema.json"]))
        matrices = {space: _matrix(space, manifest.knowledge_versions[space], contents) for space in spaces}
        ranker = _ranker(manifest.recipe.model, encoding, matrices, contents["weights.safetensors"])
    except Exception as error:  # whatever parts bring about that do not fit, they cannot be used
        raise BundleError(f"{folder}: the parts do not fit together: {error}") from error
    return Bundle(manifest=manifest, encoding=encoding, schema=schema, ranker=ranker, matrices=matrices)


def _ranker(config: Ranker.Config, encoding: Encoding, matrices: Mapping[str, VectorMatrix], weights: bytes) -> Ranker:
    """The ranker with these weights, in eval mode; its memory is taken once they are known to be its own."""
    with torch.device("meta"):
        outline = Ranker(config, input_sizes(encoding), {s: torch.empty(m.matrix.shape) for s, m in matrices.items()})
    try:
        state = inert.tensors_of(weights, inert.state_of(outline))
    except inert.Untrusted as error:
        raise inert.Untrusted(f"weights.safetensors: {error}") from error
    ranker = build_ranker(config, encoding, matrices)
    ranker.load_state_dict(state)
    return ranker.eval()


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        plain = inert.json_of(inert.content_of(path, inert.MANIFEST_BYTES))
        found = plain.get("format") if isinstance(plain, dict) else None
        if found != FORMAT:
            raise BundleError(f"{path}: format {found!r}, this program reads format {FORMAT}; train again or upgrade")
        manifest = from_plain(Manifest, plain)
        said = manifest.content_hash()
        inert.check_sizes(manifest.recipe.model, "recipe.model")
    except BundleError:
        raise
    except inert.Untrusted as error:
        raise BundleError(f"{path}: {error}; a bundle is a folder with a manifest") from error
    except Exception as error:  # of whatever kind: numbers without end, nesting that JSON allows and Python does not
        raise BundleError(f"{path}: damaged: {error}") from error
    unsafe = [name for name in manifest.files if not FILE_NAME.fullmatch(name)]
    if unsafe:
        raise BundleError(f"{path}: names files that no bundle has: {unsafe}")
    if said != manifest.version:
        raise BundleError(f"{path}: damaged: its content has hash {said}, not {manifest.version}")
    return manifest


def _verified(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    try:
        if path.parent.is_symlink():
            raise inert.Untrusted("lies in a folder that is a link")
        content = inert.content_of(path, inert.JSON_BYTES if path.suffix == ".json" else inert.TABLE_BYTES)
    except inert.Untrusted as error:
        raise BundleError(f"{path}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise BundleError(f"{path}: damaged: SHA-256 {found}, the manifest says {digest}")
    return content


def _matrix(space: str, version: str, contents: Mapping[str, bytes]) -> VectorMatrix:
    """Raises ValueError for vectors that are no space: other types and shapes, rows that are not there."""
    place = f"vectors/{space}"
    keys = inert.json_of(contents[f"{place}.keys.json"])
    if space not in columns.SPACES or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise inert.Untrusted(f"{place}.keys.json: a known space and a list of texts are needed")
    records = inert.Declared(torch.int64, (len(keys),))
    declared = {"matrix": inert.Declared(torch.float32, (None, None)), "rows": records, "available_at": records}
    try:
        tensors = inert.tensors_of(contents[f"{place}.safetensors"], declared)
        matrix, rows, available_at = (tensors[name].numpy() for name in declared)
        if not len(matrix) or matrix[0].any() or (len(rows) and not 1 <= rows.min() <= rows.max() < len(matrix)):
            raise inert.Untrusted("row 0 must be zeros, and every record point to a row after it")
    except inert.Untrusted as error:
        raise inert.Untrusted(f"{place}.safetensors: {error}") from error
    return VectorMatrix(
        space=space,
        version=version,
        matrix=matrix,
        keys=pa.array(keys, pa.string()),
        rows=rows,
        available_at=available_at,
    )
