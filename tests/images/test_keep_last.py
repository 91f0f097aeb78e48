"""What an ingest of a night keeps of tiles whose files are broken, and what it lets go."""

import os

import pytest
import where
from conftest_images import pixels, write

from surveyproc.images.cube import read_tiles
from surveyproc.images.ingest import ingest_tiles
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


@pytest.fixture
def survey(tmp_path, make_config):
    """Two ingested tiles of two bands each; the second one is never touched."""
    for tile in ("T1", "T2"):
        for band in ("g", "r"):
            write(tmp_path / f"{tile}_{band}.fits", pixels(), tile=tile, band=band)
    night(make_config())
    return make_config


def night(config):
    summary = ingest_tiles(Survey(config), where.HERE, keep_last=True)
    return summary, {tile.id: tile for tile in read_tiles(Store(config.root))}


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


def scribble(path):
    path.write_bytes(b"no FITS at all" * 1000)


def unlink_target(path):
    path.unlink()
    os.symlink("nowhere", path)


@pytest.mark.parametrize("spoil", [truncate, scribble, unlink_target])
@pytest.mark.parametrize("bands", ["r", "gr"])
def test_a_tile_with_broken_files_stays_as_it_was(survey, tmp_path, spoil, bands):
    _, before = night(survey())
    for band in bands:
        spoil(tmp_path / f"T1_{band}.fits")
    summary, after = night(survey())
    assert after == before
    assert summary.tiles == 2
    (kept,) = {line.partition(":")[0] for line in summary.kept}
    assert kept == "tile T1"
    assert summary.complete == (spoil is not unlink_target)
    for band in bands:
        (tmp_path / f"T1_{band}.fits").unlink()
        write(tmp_path / f"T1_{band}.fits", pixels(7), tile="T1", band=band)
    summary, mended = night(survey())
    assert summary.kept == []
    assert mended["T1"].version != before["T1"].version


def test_what_was_taken_away_goes(survey, tmp_path):
    (tmp_path / "T1_r.fits").unlink()
    summary, after = night(survey())
    assert (after["T1"].bands, summary.kept) == (("g",), [])
    (tmp_path / "T1_g.fits").unlink()
    summary, after = night(survey())
    assert (list(after), summary.kept) == (["T2"], [])


def test_a_band_that_is_no_longer_wanted_goes(survey):
    summary, after = night(survey(bands=("g",)))
    assert {tile.bands for tile in after.values()} == {("g",)}
    assert summary.kept == []


def test_a_new_tile_comes_with_what_can_be_used(survey, tmp_path):
    for band in ("g", "r"):
        write(tmp_path / f"T3_{band}.fits", pixels(3), tile="T3", band=band)
    truncate(tmp_path / "T3_r.fits")
    summary, after = night(survey())
    assert after["T3"].bands == ("g",)
    assert (summary.kept, len(summary.problems)) == ([], 1)


def test_a_tile_whose_last_cube_is_gone_is_not_kept(survey, tmp_path):
    _, before = night(survey())
    Store(survey().root).remove(before["T1"].key)
    truncate(tmp_path / "T1_r.fits")
    summary, after = night(survey())
    assert (after["T1"].bands, summary.kept) == (("g",), [])
