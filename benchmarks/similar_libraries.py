"""The index of one partition of 100,000 rows beside HNSW graphs of usearch, faiss and hnswlib.

    python benchmarks/similar_libraries.py FOLDER

FOLDER holds the codes that `similar.py vectors` made. Of the libraries those count that are
installed. Searches are cold (pages dropped from memory) and warm.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from similar import ROWS, seconds

from surveyproc.catalogs import neighbours
from surveyproc.schemas import Column
from surveyproc.store.storage import Store

FLAT = Column("x", "int8", length=64, searched=True)


def libraries(folder: Path) -> None:
    """One partition as HNSW graph of 16 links a row, built and searched by one thread."""
    codes = np.load(folder / "codes.npy", mmap_mode="r")[:ROWS].copy()
    rows = np.random.default_rng(6).choice(len(codes), 25, replace=False)
    flat = Store(str(folder / "flat"))
    values = {"object_id": np.arange(ROWS), "ra": np.zeros(ROWS), "dec": np.zeros(ROWS)}
    offsets = np.arange(ROWS + 1, dtype=np.int32) * 64
    lists = pa.ListArray.from_arrays(offsets, codes.ravel())
    started = time.monotonic()
    flat.put("index", neighbours.encode(pa.table({**values, "x": lists}), FLAT, "v1"))
    built, size = time.monotonic() - started, (flat.size("index") or 0) / ROWS
    print(f"ours: built in {built:.2f} s, {size:.0f} bytes a row", end="; ")

    def ours(row: int) -> object:
        return neighbours.nearest(neighbours.read(flat, "index", "x", "v1").codes, codes[row], 11)

    print(seconds(ours, folder / "flat", rows), flush=True)
    for name, maker in (("usearch", _usearch), ("faiss", _faiss), ("hnswlib", _hnswlib)):
        try:
            make, look = maker()
        except ImportError:
            print(f"{name}: not installed")
            continue
        place = folder / name
        place.mkdir(exist_ok=True)
        started = time.process_time()
        make(codes, str(place / "index"))
        built = time.process_time() - started
        first = (place / "index").read_bytes()
        make(codes, str(folder / "again"))
        same = (folder / "again").read_bytes() == first
        shares = []
        for row in rows:
            found = codes[np.asarray(look(str(place / "index"), codes[row]), int)]
            away = ((found.astype(np.int32) - codes[row]) ** 2).sum(axis=1)
            reach = np.sort(neighbours.nearest(codes, codes[row], 11)[1])[10]
            shares.append((np.sort(away)[:11] <= reach).mean())

        def search(row: int, look: Any = look, place: Path = place) -> object:
            return look(str(place / "index"), codes[row])

        print(
            f"{name}: built in {built:.1f} s of a core, {len(first) / ROWS:.0f} bytes a row, "
            f"{'the same' if same else 'other'} bytes when repeated, recall {np.mean(shares):.3f}; "
            f"{seconds(search, place, rows)}",
            flush=True,
        )


def _usearch() -> tuple[Any, Any]:
    from usearch.index import Index

    def make(part: NDArray[np.int8], path: str) -> None:
        index = Index(ndim=64, metric="l2sq", dtype="i8", connectivity=16, expansion_add=64)
        index.add(np.arange(len(part)), part, threads=1)
        index.save(path)

    def look(path: str, code: NDArray[np.int8]) -> NDArray[Any]:
        return Index.restore(path, view=True).search(code, 11, threads=1).keys

    return make, look


def _hnswlib() -> tuple[Any, Any]:
    import hnswlib

    def make(part: NDArray[np.int8], path: str) -> None:
        index = hnswlib.Index("l2", 64)
        index.init_index(len(part), ef_construction=64, M=16)
        index.add_items(part.astype(np.float32), np.arange(len(part)), num_threads=1)
        index.save_index(path)

    def look(path: str, code: NDArray[np.int8]) -> NDArray[Any]:
        index = hnswlib.Index("l2", 64)
        index.load_index(path)
        index.set_ef(64)
        return index.knn_query(code.astype(np.float32), 11, num_threads=1)[0][0]

    return make, look


def _faiss() -> tuple[Any, Any]:
    import faiss

    faiss.omp_set_num_threads(1)

    def make(part: NDArray[np.int8], path: str) -> None:
        index = faiss.IndexHNSWSQ(64, faiss.ScalarQuantizer.QT_8bit_direct_signed, 16)
        index.hnsw.efConstruction = 64
        index.train(part.astype(np.float32))
        index.add(part.astype(np.float32))
        faiss.write_index(index, path)

    def look(path: str, code: NDArray[np.int8]) -> NDArray[Any]:
        index = faiss.read_index(path)
        index.hnsw.efSearch = 64
        return index.search(code[None].astype(np.float32), 11)[1][0]

    return make, look


if __name__ == "__main__":
    libraries(Path(sys.argv[1]))
