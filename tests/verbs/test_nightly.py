"""Five nights of a simulated survey; what a night refuses; what it does with bad files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_survey
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from sums import leaves
from unit_troubles import KEY, TroubledWorker, make_trouble

from surveyproc import verbs
from surveyproc.config import SurveyConfig, load
from surveyproc.run import pipeline
from surveyproc.run.plan import make_plan
from surveyproc.store.documents import document
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.verbs.nightly import Night, NightUnits, nightly
from surveyproc.verbs.sources import Changes

# Tiles of a small survey are a quarter of it, and the network has seen one epoch: what would be
# alarming elsewhere is usual here.
LOOSE = (
    "nightly.max_share_growth=0.5",
    "nightly.max_drift=1.0",
    "nightly.max_metric_growth=9.0",
    "nightly.max_flux_shift=1.0",
    "products.photoz.training.epochs=1",
    "catalog.partition_rows=12",
)


def config_of(survey: Path, *more: str) -> SurveyConfig:
    return load(survey, [*LOOSE, *more])


def near(survey: Path, *tiles: str) -> int:
    """Partitions whose circle meets that of one of the tiles, by astropy."""
    store = survey.parent / "store"
    parts = pq.read_table(store / "catalogs/simulated/partitions.parquet").to_pandas()
    fields = pq.read_table(store / "images/tiles.parquet").to_pandas().set_index("id")
    centres = SkyCoord(parts["ra"], parts["dec"], unit="deg")
    met = np.zeros(len(parts), bool)
    for tile in tiles:
        field = fields.loc[tile]
        apart = centres.separation(SkyCoord(field["ra"], field["dec"], unit="deg"))
        met |= apart < (parts["radius"].to_numpy() + field["radius"]) * u.deg
    return int(met.sum())


def row(name: str, affected: int, done: Night) -> str:
    units = done.units
    return (
        f"{name:<14}{units.total:>6}{affected:>9}{units.computed:>9}{units.adopted:>8}"
        f"{done.seconds:>8.1f}  {done.did}"
    )


def brighten(path: Path) -> None:
    """Other pixels, the same modification time."""
    status = path.stat()
    with fits.open(path, mode="update") as file:
        file[0].data *= np.float32(1.02)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def first_night(trained_survey, tmp_path_factory) -> Path:
    """A survey whose first night is over; the files of tile t00 are still to come."""
    folder = tmp_path_factory.mktemp("nights") / "survey"
    shutil.copytree(trained_survey.parent, folder)
    (folder / "later").mkdir()
    for path in folder.glob("tiles/t00_*"):
        path.rename(folder / "later" / path.name)
    done = nightly(Survey(config_of(folder / "survey.toml")))
    assert done.did == "published"
    total = done.units.total
    assert done.units == NightUnits(total, affected=total, computed=total)
    return folder / "survey.toml"


@pytest.fixture
def survey(first_night, tmp_path) -> Path:
    shutil.copytree(first_night.parent, tmp_path / "copy")
    return tmp_path / "copy" / "survey.toml"


@pytest.fixture
def two_tiles(tmp_path) -> Path:
    """Photometry of two tiles with 25 stars each; the first night is over."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:200, :200]
    cx, cy = (np.arange(25) % 5 * 28 + 44.3, np.arange(25) // 5 * 28 + 43.8)
    rows = ["object_id,ra,dec"]
    for tile in (0, 1):
        cards = {
            **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1.0, "CRPIX2": 1.0},
            **{"CRVAL1": 10.0 + tile, "CRVAL2": 0.0, "CDELT1": 1e-4, "CDELT2": 1e-4},
            **{"OBJECT": f"t{tile}", "FILTER": "r", "MAGZERO": 25.0},
        }
        image = rng.normal(0, 1, (200, 200))
        for a, b, peak in zip(cx, cy, rng.uniform(40, 400, 25), strict=True):
            image += peak * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8)
        header = fits.Header(cards)
        fits.PrimaryHDU(image.astype(np.float32), header).writeto(tmp_path / f"t{tile}.fits")
        ra, dec = WCS(header).all_pix2world(cx, cy, 0)
        rows += [f"{100 * tile + i},{ra[i]:.9f},{dec[i]:.9f}" for i in range(25)]
    (tmp_path / "sources.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "survey.toml").write_text(
        '[survey]\nname = "two"\nroot = "./store"\n[images]\nbands = ["r"]\ntiles = ["*.fits"]\n'
        '[catalog]\nsource = "sources.csv"\npartition_rows = 10\n'
        '[[products]]\nname = "photometry"\naperture = [1.0, 1.5]\n[run]\nplace = "here"\n'
        "[nightly]\nmax_drift = 1.0\n"
    )
    assert nightly(Survey(load(tmp_path / "survey.toml"))).did == "published"
    return tmp_path / "survey.toml"


@pytest.mark.parametrize(("factor", "passes"), [(1.05, False), (0.95, False), (1.02, True)])
def test_a_shift_of_one_tile_s_zero_point_does_not_pass_unseen(two_tiles, factor, passes):
    before = leaves(two_tiles)
    fits.setval(two_tiles.parent / "t1.fits", "MAGZERO", value=25.0 - 2.5 * np.log10(factor))
    done = nightly(Survey(load(two_tiles)))
    for column in ("flux_r", "flux_r_1p5"):
        # The circles of the tiles are apart: only leaves of t1 differ.
        assert done.diff.flux_ratios[column]["t1"].ratio == pytest.approx(factor, abs=2e-3)
    if passes:
        assert done.did == "published"
        return
    assert (done.did, done.exit_code) == ("refused", 3)
    found = {(gate.gate, gate.where) for gate in done.gates}
    assert found == {
        ("flux ratio", "flux_r of tile t1"),
        ("flux ratio", "flux_r_1p5 of tile t1"),
    }
    assert "flux_r of tile t1" in done.error
    assert leaves(two_tiles) == before
    assert nightly(Survey(load(two_tiles, ["nightly.max_flux_shift=0.1"]))).did == "published"


def test_five_nights(survey, capsys):
    folder, states, table = survey.parent, [leaves(survey)], []
    total_leaves = states[0].keys()
    total = len(total_leaves)

    def night(name: str, *tiles: str) -> Night:
        """One night, in which these tiles changed."""
        done = nightly(Survey(config_of(survey)))
        assert (done.exit_code, done.error) == (2 if done.problems else 0, "")
        affected, units = near(survey, *tiles), done.units
        table.append(row(name, affected, done))
        assert units.affected == units.computed == affected
        assert units.adopted == (total - affected if affected else 0)
        states.append(leaves(survey))
        moved = sum(states[-1][leaf] != states[-2][leaf] for leaf in total_leaves)
        assert moved <= affected
        return done

    # The copy's files have other paths: they are read, and nothing in them is new.
    nightly(Survey(config_of(survey)))
    done = night("nothing")
    assert done.did == "nothing"
    assert states[-1] == states[-2]

    for path in folder.glob("later/*"):
        path.rename(folder / "tiles" / path.name)
    done = night("one new tile", "t00")
    assert done.tiles == Changes(new=["t00"])
    assert 0 < done.units.computed < total
    assert done.diff.changed > 0
    assert done.diff.added == done.diff.removed == 0
    assert done.diff.columns["flux_r"].gained > 0
    compared = {one.what for one in done.compared}
    rows = {"rows lost", "rows gained", "duplicate ids"}
    assert compared == {*rows, "null share", "flag share", "drift", "nmad", "outlier_fraction"}

    brighten(folder / "tiles/t01_r.fits")
    done = night("a changed tile", "t01")
    assert [Path(name).name for name in done.files.changed] == ["t01_r.fits"]
    assert done.tiles.changed == ["t01"]
    assert done.diff.columns["flux_r"].changed > 0
    assert "flux_i" not in done.diff.columns

    verbs.train(Survey(config_of(survey, "products.photoz.training.seed=5")))
    refused = nightly(Survey(config_of(survey, "nightly.max_drift=0.0")))
    assert (refused.did, refused.exit_code) == ("refused", 3)
    assert {gate.gate for gate in refused.gates} == {"drift"}
    assert all("gaznet_c9" in gate.where for gate in refused.gates)
    assert leaves(survey) == states[-1]
    done = nightly(Survey(config_of(survey)))
    assert done.exit_code == 0, done.error
    table.append(row("a new model", total, refused) + ", then allowed")
    assert done.units == NightUnits(total, affected=total, resumed=total)
    states.append(leaves(survey))

    bad = folder / "tiles/t02_g.fits"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 3])
    done = night("a broken tile")
    assert done.did == "nothing"
    (kept,) = done.kept
    assert kept.startswith("tile t02: band g broken")
    assert any("t02_g.fits" in problem for problem in done.problems)
    assert nightly(Survey(config_of(survey))).kept == done.kept  # said again while it is so
    bad.write_bytes(good)
    assert nightly(Survey(config_of(survey))).kept == []

    # What the nights made piece by piece is what one run makes of the same files.
    assert verbs.validate(Survey(load(survey))).problems == []
    shutil.rmtree(folder / "store/releases")
    for run in folder.glob("store/runs/r*"):
        shutil.rmtree(run)
    verbs.run(Survey(config_of(survey)))
    assert leaves(survey) == states[-1]
    with capsys.disabled():
        header = f"{'night':<14}{'units':>6}{'affected':>9}{'computed':>9}{'copied':>8}{'s':>8}"
        print("", header, *table, sep="\n")


def test_rows_that_are_gone_are_refused_and_the_summary_lies_where_it_says(survey):
    source = survey.parent / "sources.fits"
    with fits.open(source) as file:
        hdus = fits.HDUList([file[0].copy(), fits.BinTableHDU(file[1].data[:200].copy())])
    hdus.writeto(source, overwrite=True)
    before = leaves(survey)
    done = nightly(Survey(config_of(survey)))
    assert done.exit_code == 3
    assert {gate.gate for gate in done.gates} == {"rows lost", "matched labels"}
    assert "rows lost" in done.error
    assert leaves(survey) == before
    written = json.loads(Path(done.summary).read_text())
    assert written["did"] == "refused"
    assert written == document(done)
    assert nightly(Survey(config_of(survey, "nightly.max_rows_lost=0.5"))).diff.removed == 40


@pytest.mark.slow
def test_positions_off_by_more_than_the_radius_of_the_labels_are_not_published(survey):
    """No label matches, so nothing is known of the redshifts: silence is a refusal."""
    settings = ("truth.radius=0.2",)
    assert nightly(Survey(config_of(survey, *settings))).exit_code == 0
    source, before = survey.parent / "sources.fits", leaves(survey)
    with fits.open(source, mode="update") as file:
        file[1].data["dec"] += 0.6 / 3600
    done = nightly(Survey(config_of(survey, *settings)))
    assert (done.did, done.exit_code) == ("refused", 3)
    silent = [gate for gate in done.gates if gate.gate == "matched labels"]
    assert [gate.where for gate in silent] == ["gaznet_c9_z_median"]
    assert silent[0].found.startswith("0 (were ")
    assert leaves(survey) == before


def test_a_broken_catalog_leaves_the_last_one(survey):
    source = survey.parent / "sources.fits"
    source.write_bytes(source.read_bytes()[:9000])
    done = nightly(Survey(config_of(survey)))
    assert done.did == "nothing"
    assert any(kept.startswith("catalog:") and "sources.fits" in kept for kept in done.kept)


def test_old_releases_go_and_the_published_one_stays(survey):
    made = [verbs.releases(Survey(load(survey))).current.release]
    for radius in ("1.3", "1.4"):
        done = nightly(
            Survey(
                config_of(
                    survey, f"products.photometry.aperture={radius}", "nightly.keep_releases=2"
                )
            )
        )
        made.append(done.release)
    listed = verbs.releases(Survey(load(survey))).releases
    assert [one.release for one in listed] == made[-2:]
    folder = survey.parent / "store"
    assert sorted(path.name for path in folder.glob("runs/r*")) == sorted(made[-2:])
    assert verbs.validate(Survey(load(survey))).problems == []
    assert Store(str(folder)).names("releases/simulated") == sorted([*made[-2:], "current.json"])


def test_a_published_gap_is_left_alone_until_somebody_runs(survey, monkeypatch):
    store = Store(str(survey.parent / "store"))
    config = config_of(
        survey, "products.photometry.aperture=1.3", "gates.max_quarantined_share=0.5"
    )
    sick = make_plan(Survey(config)).units[1].name
    make_trouble(store, sick, "raises", 99)
    monkeypatch.setattr(pipeline, "UnitWorker", TroubledWorker)
    done = nightly(Survey(config))
    assert (done.did, done.quarantined) == ("published", [sick])
    tried = store.read_json(KEY)
    done = nightly(Survey(config))
    assert (done.did, done.quarantined, done.units.affected) == ("nothing", [sick], 0)
    assert store.read_json(KEY) == tried
    monkeypatch.undo()
    assert verbs.run(Survey(config)).quarantined == []


def test_a_damaged_cube_is_built_anew_in_the_next_night_though_no_file_changed(two_tiles):
    survey = Survey(load(two_tiles, ["products.photometry.aperture=[1.0, 1.5, 2.0]"]))
    shard = max(
        (two_tiles.parent / "store/images/t0").glob("*/image/c/**/*"), key=lambda p: len(p.parts)
    )
    whole = shard.read_bytes()
    shard.write_bytes(bytes(len(whole) // 2) + whole[len(whole) // 2 :])
    damaged = nightly(survey)
    assert damaged.did == "refused"
    assert "corrupt_data" in damaged.error
    mended = nightly(survey)
    assert (mended.did, mended.damaged, mended.tiles.changed) == ("published", [], [])
    assert 0 < mended.units.computed < mended.units.total
    assert mended.units.resumed == mended.units.total - mended.units.computed
    assert shard.read_bytes() == whole
    assert nightly(survey).did == "nothing"


def test_a_column_that_would_be_gone_is_refused(survey):
    text = survey.read_text()
    survey.write_text(text[: text.index('[[products]]\nname = "photoz"')])
    loose = [one for one in LOOSE if "photoz" not in one]
    done = nightly(Survey(load(survey, loose)))
    assert done.exit_code == 3
    assert {gate.gate for gate in done.gates} == {"columns gone"}
    assert "gaznet_c9_z_median" in {gate.where for gate in done.gates}
    assert verbs.run(Survey(load(survey, loose))).did == "published"


def twice(lines):
    return [*lines, *lines[1:]]


def renumbered(lines):
    return [lines[0], *(f"9{line}" for line in lines[1:19]), *lines[19:]]


@pytest.mark.parametrize(
    ("change", "gates"),
    [(twice, {"rows gained", "duplicate ids"}), (renumbered, {"rows lost"})],
)
def test_another_catalog_of_the_same_sky_is_not_published_by_itself(tmp_path, change, gates):
    survey = small_survey.make(tmp_path / "survey")
    assert nightly(Survey(load(survey))).did == "published"
    source = survey.parent / "sources.csv"
    source.write_text("\n".join(change(source.read_text().splitlines())) + "\n")
    done = nightly(Survey(load(survey)))
    assert done.did == "refused"
    assert gates <= {gate.gate for gate in done.gates} <= {*gates, "flag share"}


def test_a_zero_point_that_is_5_percent_off_in_one_tile_is_not_published(tmp_path):
    survey = small_survey.make(tmp_path / "survey")
    assert nightly(Survey(load(survey))).did == "published"
    path = survey.parent / "tiles/t1_r.fits"
    with fits.open(path, mode="update") as file:
        file[0].data *= np.float32(1.05)
    done = nightly(Survey(load(survey)))
    assert [(gate.gate, gate.where) for gate in done.gates] == [
        ("flux ratio", "flux_r of tile t1"),
    ]
