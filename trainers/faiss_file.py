"""What a FAISS file must be before FAISS reads it: one of the two layouts that `trainers.index` writes, byte for byte.

FAISS believes the file. Lengths in it say how much memory is taken, and kinds of index that we never write name other
files to open. So kinds, lengths and row numbers are compared with what the artefact declares first.

    flat        "IxFI" header, numbers
    ivf         "IwFl" header, lists, probes, a flat of the lists' centroids, no direct map, inverted lists
    header      width, vectors, two unused numbers, is trained, metric 0: the inner product
    inverted    "ilar" lists, bytes of a vector, "full" lengths | "sprs" pairs of list and length, then vectors and rows
                of each list
"""

from __future__ import annotations

import struct

import numpy as np

FLAT, IVF = b"IxFI", b"IwFl"
HEADER = "<iqqq?i"


class FaissFileError(ValueError):
    """A file is not the index that it is declared to be. The message says in what it differs."""


def check(content: bytes, vectors: int, width: int, lists: int | None) -> None:
    """Raises FaissFileError unless these are `vectors` finite vectors of `width` numbers, in rows 0 .. vectors - 1.

    Args:
        lists: of an approximate index; None: an exact one.
    """
    file = _File(content)
    try:
        if lists is None:
            file.flat(vectors, width)
        else:
            file.inverted(vectors, width, lists)
    except struct.error as error:
        raise FaissFileError("ends too early") from error
    if file.at != len(content):
        raise FaissFileError(f"goes on for {len(content) - file.at} bytes after its end")


class _File:
    """A place in the content that moves on with what is read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def numbers(self, form: str) -> tuple[int, ...]:
        found = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return found

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise FaissFileError(f"{what}: {found}, and {wanted} is needed")

    def array(self, dtype: str, count: int) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        if count < 0 or size > len(self.content) - self.at:
            raise FaissFileError("ends too early")
        found = np.frombuffer(self.content, dtype, count, self.at)
        self.at += size
        return found

    def header(self, kind: bytes, vectors: int, width: int) -> None:
        found = self.content[self.at : self.at + 4]
        if found != kind:
            raise FaissFileError(f"is not an inner-product index of the kind {kind.decode()}: {found!r}")
        self.at += 4
        d, ntotal, _, _, trained, metric = self.numbers(HEADER)
        if metric != 0 or not trained:
            raise FaissFileError("is not an inner-product index that was trained")
        if ntotal != vectors:
            raise FaissFileError(f"{ntotal} vectors for {vectors}")
        if d != width:
            raise FaissFileError(f"vectors of {d} numbers where {width} are needed")

    def flat(self, vectors: int, width: int) -> None:
        self.header(FLAT, vectors, width)
        self.expect("numbers", self.numbers("<Q"), (vectors * width,))
        self.finite(vectors * width)

    def finite(self, count: int) -> None:
        if not np.isfinite(self.array("<f4", count)).all():
            raise FaissFileError("holds a number that is not finite")

    def inverted(self, vectors: int, width: int, lists: int) -> None:
        self.header(IVF, vectors, width)
        self.expect("lists", self.numbers("<QQ")[0], lists)
        self.flat(lists, width)
        self.expect("direct map", self.numbers("<bQ"), (0, 0))
        self.expect("inverted lists", bytes(self.array("u1", 4)), b"ilar")
        self.expect("lists and bytes of a vector", self.numbers("<QQ"), (lists, 4 * width))
        lengths = self.lengths(lists)
        if lengths.max(initial=0) > vectors or int(lengths.sum()) != vectors:
            raise FaissFileError(f"its lists do not hold {vectors} vectors in all")
        seen = np.zeros(vectors, dtype=bool)
        for length in lengths[lengths > 0].tolist():
            self.finite(length * width)
            rows = self.array("<i8", length)
            if rows.min() < 0 or rows.max() >= vectors:
                raise FaissFileError("a list names a row that is not there")
            seen[rows] = True
        if not seen.all():
            raise FaissFileError("a row stands in no list")

    def lengths(self, lists: int) -> np.ndarray:
        """Of all lists, uint64 (lists,)."""
        form, (count,) = bytes(self.array("u1", 4)), self.numbers("<Q")
        if form == b"full":
            self.expect("lengths", count, lists)
            return self.array("<u8", lists)
        self.expect("form of the lengths", form, b"sprs")
        pairs = self.array("<u8", count).reshape(-1, 2) if count % 2 == 0 else np.zeros((0, 2), "<u8")
        at, length = pairs[:, 0], pairs[:, 1]
        if len(np.unique(at)) != len(at) or at.max(initial=0) >= lists:
            raise FaissFileError("names a list that is not there, or one twice")
        found = np.zeros(lists, dtype="<u8")
        found[at.astype(np.int64)] = length
        return found
