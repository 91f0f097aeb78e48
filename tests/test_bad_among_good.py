"""One bad file of each kind among ten good ones: the ten are published, and each bad one named."""

import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from surveyproc import verbs
from surveyproc.catalogs.ingest import read_catalog
from surveyproc.config import load
from surveyproc.errors import InputError, StoreError
from surveyproc.images.cube import read_tiles
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import nightly

SIDE, SCALE, GOOD = 64, 0.3 / 3600, 10


def header(number: int, **cards) -> fits.Header:
    """Tile `number` of a row of tiles that do not touch; a card of None is left out."""
    middle = (SIDE + 1) / 2
    values = {
        **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": middle, "CRPIX2": middle},
        **{"CRVAL1": 150 + 0.02 * number, "CRVAL2": 2.0, "CDELT1": -SCALE, "CDELT2": SCALE},
        **{"FILTER": "r", "OBJECT": f"t{number:02d}", "MAGZERO": 27.0, **cards},
    }
    return fits.Header([(name, value) for name, value in values.items() if value is not None])


def write(path: Path, number: int, pixels: np.ndarray | None = None, **cards) -> None:
    if pixels is None:
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        star = 500 * np.exp(-(x**2 + y**2) / 2 / 1.6**2)
        pixels = star + np.random.default_rng(number).normal(0, 1, (SIDE, SIDE))
    fits.PrimaryHDU(pixels.astype("f4"), header(number, **cards)).writeto(path, overwrite=True)


def cards_of(**cards):
    return lambda path, number: write(path, number, **cards)


def text(path: Path, number: int) -> None:
    path.write_text("<html>404 Not Found</html>\n")


def empty(path: Path, number: int) -> None:
    path.write_bytes(b"")


def cut(size: int):
    def write_and_cut(path: Path, number: int) -> None:
        write(path, number)
        path.write_bytes(path.read_bytes()[:size])

    return write_and_cut


def cut_gzip(path: Path, number: int) -> None:
    write(path, number)
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


def raw_card(name: str, card: str):
    """A header whose card `name` is replaced by 80 bytes of any kind."""

    def write_and_replace(path: Path, number: int) -> None:
        write(path, number)
        data = path.read_bytes()
        place = data.index(f"{name:<8}=".encode())
        path.write_bytes(data[:place] + card.ljust(80).encode("latin-1") + data[place + 80 :])

    return write_and_replace


def nothing_finite(path: Path, number: int) -> None:
    write(path, number, np.full((SIDE, SIDE), np.nan))


def cube_of_two(path: Path, number: int) -> None:
    write(path, number, np.zeros((2, SIDE, SIDE)))


def fifo(path: Path, number: int) -> None:
    os.mkfifo(path)


def endless(path: Path, number: int) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path, number: int) -> None:
    path.symlink_to("nowhere.fits")


BAD = {
    "a web page": text,
    "empty": empty,
    "cut in the header": cut(1500),
    "cut in the pixels": cut(2880 + 4000),
    "cut gzip": cut_gzip,
    "no zero point": cards_of(MAGZERO=None),
    "zero point of a failed fit": cards_of(MAGZERO=-999.0),
    "zero point 0": cards_of(MAGZERO=0.0),
    "zero point in words": cards_of(MAGZERO="unknown"),
    "band of another survey": cards_of(FILTER="N708"),
    "no band": cards_of(FILTER=None),
    "no projection": cards_of(CTYPE1="LINEAR", CTYPE2="LINEAR"),
    "distortion of IRAF": cards_of(CTYPE1="RA---TNX", CTYPE2="DEC--TNX"),
    "pixel of a degree": cards_of(CDELT1=-1.0, CDELT2=1.0),
    "pixel without size": cards_of(CDELT1=0.0),
    "a place in words": raw_card("CRVAL1", "CRVAL1  = 'ten hours'"),
    "a card that is none": raw_card("CDELT1", "CDELT1  = 1..5"),
    "no pixel": nothing_finite,
    "two planes in one": cube_of_two,
    "a pipe": fifo,
    "an endless device": endless,
    "a link to nothing": dangling,
}
SURVEY = """
[survey]
name = "field"
root = "./store"

[images]
tiles = ["tiles/*.fits"]
bands = ["r"]

[catalog]
source = "sources.parquet"

[[products]]
name = "photometry"

[run]
place = "here"
"""


@pytest.fixture
def survey(tmp_path):
    """Ten good tiles, and as many more as there are ways to be bad; a star in each."""
    (tmp_path / "tiles").mkdir()
    numbers = range(GOOD + len(BAD))
    for number in numbers:
        write(tmp_path / f"tiles/t{number:02d}.fits", number)
    positions = {"ra": [150 + 0.02 * number for number in numbers], "dec": [2.0] * len(numbers)}
    table = pa.table({"object_id": list(numbers), **positions})
    pq.write_table(table, tmp_path / "sources.parquet")
    path = tmp_path / "survey.toml"
    path.write_text(SURVEY)
    return path


def spoil(survey: Path) -> dict[str, str]:
    """Replace all files but ten by bad ones; names of the files by what is wrong with them."""
    names = {}
    for number, (kind, make) in enumerate(BAD.items(), GOOD):
        path = survey.parent / f"tiles/t{number:02d}.fits"
        path.unlink()
        make(path, number)
        names[kind] = path.name
    return names


def fluxes(survey: Path) -> list[float | None]:
    """The published flux of each star, in the order of their tiles."""
    store = Store(load(survey).root)
    folder = Path(verbs.releases(Survey(load(survey))).current.url)
    assert store.is_local
    leaves = folder.glob("dataset/**/Npix=*.parquet")
    table = pa.concat_tables(
        pq.ParquetFile(leaf).read(["object_id", "flux_r", "photometry_flag"]) for leaf in leaves
    )
    return table.sort_by("object_id")["flux_r"].to_pylist()


def test_ingest(survey):
    names = spoil(survey)
    config = load(survey, ["gates.max_null_share=0.9"])
    # The link to nothing may lead somewhere another time: that file is to be tried again.
    with pytest.raises(StoreError, match="1 of the tiles and files failed") as caught:
        verbs.ingest(Survey(config))
    assert {kind for kind, name in names.items() if name not in str(caught.value)} == set()
    (survey.parent / "tiles" / names["a link to nothing"]).unlink()
    problems = verbs.ingest(Survey(config)).tiles.problems
    told = {name for name in names.values() if any(name in problem for problem in problems)}
    assert len(told) == len(BAD) - 1
    assert {tile.id for tile in read_tiles(Store(config.root))} == {
        f"t{n:02d}" for n in range(GOOD)
    }
    assert verbs.run(Survey(config)).did == "published"
    found = fluxes(survey)
    assert all(flux is not None and flux > 0 for flux in found[:GOOD])
    assert found[GOOD:] == [None] * len(BAD)


def test_night(survey):
    config = load(survey)
    verbs.ingest(Survey(config))
    verbs.run(Survey(config))
    before = fluxes(survey)
    names = spoil(survey)
    write(survey.parent / "tiles/t00.fits", 0, np.full((SIDE, SIDE), 1.0), EXPTIME=1.0)
    loose = ["max_drift=1.0", "max_share_growth=1.0", "max_flux_shift=99.0"]
    done = nightly(Survey(load(survey, [f"nightly.{limit}" for limit in loose])))
    assert done.did == "published", done.error
    said = "\n".join(done.problems + done.kept)
    assert {kind for kind, name in names.items() if name not in said} == set()
    after = fluxes(survey)
    # The one good tile that changed is new; all the others stay as they were, bad ones included.
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_without_a_good_tile_the_catalog_is_ingested_all_the_same(survey):
    names = spoil(survey)
    (survey.parent / "tiles" / names.pop("a link to nothing")).unlink()
    for number in range(GOOD):
        (survey.parent / f"tiles/t{number:02d}.fits").unlink()
    with pytest.raises(InputError, match="no image tile could be ingested") as caught:
        verbs.ingest(Survey(load(survey)))
    assert all(name in str(caught.value) for name in names.values())
    assert read_catalog(Store(load(survey).root), "field").rows_out == GOOD + len(BAD)
