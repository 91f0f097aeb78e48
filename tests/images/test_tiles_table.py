"""The table of tiles: whose rows are whose, and a table that cannot be used."""

import io

import pyarrow.parquet as pq
import pytest
import where
from conftest_images import pixels, write

from surveyproc.errors import InputError, StoreError
from surveyproc.images.cube import finest_tile, is_ingested, read_tiles
from surveyproc.images.ingest import ingest_tiles
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


def run(config):
    store = Store(config.root)
    return ingest_tiles(Survey(config), where.HERE), store


def test_two_surveys_under_one_root_have_their_own_tiles(tmp_path, make_config):
    write(tmp_path / "a_g.fits", pixels(1))
    write(tmp_path / "b_g.fits", pixels(7), tile="T2")
    _, store = run(make_config(tiles=["a_*.fits"], name="one"))
    one = read_tiles(store, "one")
    run(make_config(tiles=["b_*.fits"], name="two"))
    assert read_tiles(store, "one") == one
    assert [tile.id for tile in read_tiles(store, "two")] == ["T2"]
    with pytest.raises(ValueError, match="one, two"):
        read_tiles(store)
    with pytest.raises(InputError, match="no tiles of three; run `surveyproc ingest`"):
        read_tiles(store, "three")
    run(make_config(tiles=["b_*.fits"], name="one"))
    assert [tile.id for tile in read_tiles(store, "one")] == ["T2"]


def test_a_damaged_table_is_written_anew_and_the_other_survey_told(tmp_path, make_config):
    write(tmp_path / "a_g.fits", pixels(1))
    run(make_config(name="one"))
    _, store = run(make_config(name="two"))
    store.put(layout.TILES, b"PAR1 no more")
    with pytest.raises(StoreError, match="damaged or of an earlier version"):
        read_tiles(store, "one")
    run(make_config(name="two"))
    assert read_tiles(store, "two")
    with pytest.raises(InputError, match="no tiles of one"):
        read_tiles(store, "one")


def test_no_tiles_yet(tmp_path):
    with pytest.raises(InputError, match="surveyproc ingest"):
        read_tiles(Store(str(tmp_path)))


def test_a_table_of_an_earlier_version_counts_as_none_until_the_next_ingest(tmp_path, make_config):
    """Then tables did not say whose tiles they hold."""
    write(tmp_path / "a_g.fits", pixels(1))
    _, store = run(make_config())
    assert finest_tile(store, "t") == (pytest.approx(0.36), "T1")
    table = pq.read_table(io.BytesIO(store.read(layout.TILES))).drop_columns(["survey"])
    with store.writing(layout.TILES) as stream:
        pq.write_table(table.replace_schema_metadata(None), stream)
    assert not is_ingested(store, "t")
    assert finest_tile(store, "t") is None
    with pytest.raises(StoreError, match=r"of an earlier version .*surveyproc ingest"):
        read_tiles(store, "t")
    run(make_config())
    assert [tile.id for tile in read_tiles(store, "t")] == ["T1"]
