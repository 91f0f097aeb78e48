"""The whole way on a small simulated survey: every row once, readable everywhere, repeatable."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.table import Table
from hats.io.validation import is_valid_catalog
from sums import is_leaf, leaves, sums

from surveyproc import schemas, verbs
from surveyproc.catalogs.hats import leaf_key
from surveyproc.config import load
from surveyproc.errors import ConfigError, GateError, InputError, UnitsFailedError
from surveyproc.report.page import write_report
from surveyproc.run import commit
from surveyproc.run.plan import make_plan
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


def release_folder(survey: Path) -> Path:
    return Path(verbs.releases(Survey(load(survey))).current.url)


def published_rows(survey: Path):
    return pq.ParquetDataset(sorted(release_folder(survey).glob("dataset/**/Npix*.parquet"))).read()


def test_every_source_row_comes_out_once(published_survey):
    source = Table.read(published_survey.parent / "sources.fits")
    out = published_rows(published_survey)
    assert sorted(out["object_id"].to_pylist()) == sorted(source["object_id"].tolist())
    assert out.column_names[:5] == ["object_id", "ra", "dec", "_healpix_29", "catalog_flag"]
    assert out["flux_r"].null_count == 0
    assert out["gaznet_c9_z_median"].null_count == 0


# astropy's own Parquet files say how long the texts are; it measures those of others.
@pytest.mark.filterwarnings("ignore:No table..len..:astropy.utils.exceptions.AstropyUserWarning")
def test_lsdb_hats_and_astropy_read_the_release(published_survey):
    folder = release_folder(published_survey)
    assert is_valid_catalog(folder, strict=True)
    catalog = lsdb.open_catalog(folder)
    assert len(catalog.compute()) == 240
    assert "gaznet_c9_z_quantiles" not in catalog.columns
    quantiles = lsdb.open_catalog(folder, columns=["gaznet_c9_z_quantiles"]).compute()
    assert len(quantiles["gaznet_c9_z_quantiles"].iloc[0]) == 21
    leaf = next(folder.glob("dataset/**/Npix*.parquet"))
    table = Table.read(leaf, format="parquet.votable")
    assert table["flux_r"].unit == units.nJy
    assert table["ra"].unit == units.deg
    assert "Flux density" in table["flux_r"].description


def test_partitions_equal_those_of_the_source_catalog(published_survey):
    source = published_survey.parent / "store/catalogs/simulated"
    ours = leaves(published_survey)
    assert ours.keys() == sums(source, is_leaf).keys()


def test_provenance_is_in_properties_and_commit_records(published_survey):
    config = load(published_survey)
    plan = make_plan(Survey(config))
    text = (release_folder(published_survey) / "hats.properties").read_text()
    record = commit.read(Store(config.root), plan.run_key, plan.units[0].name)
    for key, value in plan.provenance.items():
        assert f"{key}={value}" in text
        assert record.provenance[key] == value


def test_a_finished_run_repeated_touches_nothing(published_survey):
    store = published_survey.parent / "store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert verbs.run(Survey(load(published_survey))).did == "nothing"
    assert verbs.plan(Survey(load(published_survey))).pending_units == 0
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


@pytest.mark.ray
def test_the_same_bytes_everywhere(published_survey, survey_copy, ray_session):
    """Two threads, one thread, and the processes of Ray; told from the configuration alone."""
    expected = leaves(published_survey)
    for settings in (
        ["run.place=here", "run.workers=1"],
        ["run.place=ray", "run.workers=2"],
        ["run.place=apart", "run.networks=1"],
        ["run.place=apart", "run.networks=2"],
    ):
        shutil.rmtree(survey_copy.parent / "store/releases", ignore_errors=True)
        shutil.rmtree(survey_copy.parent / "store/runs")
        done = verbs.run(Survey(load(survey_copy, settings)))
        where_units_ran = {one.place for one in done.places if one.what == "units"}
        assert where_units_ran == {settings[0].removeprefix("run.place=")}
        assert leaves(survey_copy) == expected


def test_resume_computes_only_what_has_no_record(published_survey, tmp_path):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    survey = tmp_path / "copy" / "survey.toml"
    config, expected = load(survey), leaves(survey)
    store = Store(config.root)
    plan = make_plan(Survey(config))
    store.remove(f"{plan.run_key}/commits/{plan.units[2].name}.json")
    store.remove(f"releases/{plan.survey}/current.json")
    # A leaf that a killed writer never finished is simply written again.
    leaf_of(plan, store, 2).write_bytes(b"half a leaf")
    done = verbs.run(Survey(config))
    assert (done.units - done.units_resumed) == 1
    assert leaves(survey) == expected


def leaf_of(plan, store: Store, unit: int) -> Path:
    chosen = plan.units[unit]
    return Path(store.url_of(f"{plan.release_key}/{leaf_key(chosen.order, chosen.pixel)}"))


def test_a_leaf_damaged_after_its_record_is_not_published_but_made_again(
    published_survey, tmp_path
):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    survey = tmp_path / "copy" / "survey.toml"
    config, expected = load(survey), leaves(survey)
    store = Store(config.root)
    plan = make_plan(Survey(config))
    store.remove(f"releases/{plan.survey}/current.json")
    leaf_of(plan, store, 1).write_bytes(b"cut")
    leaf_of(plan, store, 3).unlink()
    assert verbs.run(Survey(config)).units_resumed == len(plan.units) - 2
    assert leaves(survey) == expected


def test_a_leaf_lost_after_publication_is_made_again(published_survey, tmp_path):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    survey = tmp_path / "copy" / "survey.toml"
    config, expected = load(survey), leaves(survey)
    leaf_of(make_plan(Survey(config)), Store(config.root), 0).unlink()
    assert verbs.validate(Survey(config)).problems
    done = verbs.run(Survey(config))
    assert done.units_resumed == done.units - 1
    assert leaves(survey) == expected
    assert verbs.validate(Survey(config)).problems == []


def test_a_catalog_that_changes_under_a_plan_is_noticed(survey_copy):
    config = load(survey_copy)
    store = Store(config.root)
    plan = make_plan(Survey(config))
    unit = plan.units[0]
    key = f"{plan.catalog.key}/{leaf_key(unit.order, unit.pixel)}"
    table = store.read_table(key)
    with store.writing(key) as stream:
        pq.write_table(table.set_column(1, "ra", pc.add(table["ra"], 1e-3)), stream)
    with pytest.raises(UnitsFailedError, match="is not the leaf that was ingested"):
        verbs.run(Survey(config))


@pytest.mark.kill
def test_killed_here_at_any_moment_the_same_command_ends_in_the_same_bytes(
    survey_copy, published_survey
):
    rng = random.Random(4)
    command = [sys.executable, "-m", "surveyproc", "run", str(survey_copy)]
    settings = ["--set", "run.place=here", "--json"]
    kills = 0
    for _ in range(3):
        driver = subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL)
        commits = survey_copy.parent / "store/runs"
        goal = rng.randrange(12)
        while driver.poll() is None and len([*commits.glob("r*/commits/*.json")]) < goal:
            time.sleep(0.005)
        driver.kill()
        kills += driver.wait() == -signal.SIGKILL
    assert kills
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["did"] in ("published", "nothing")
    assert leaves(survey_copy) == leaves(published_survey)
    assert verbs.validate(Survey(load(survey_copy))).problems == []
    assert not any(path.is_file() for path in commits.glob("r*/begun/*"))


@pytest.mark.timeout(300)
def test_two_drivers_at_once_end_in_one_valid_release(survey_copy, published_survey):
    command = [sys.executable, "-m", "surveyproc", "run", str(survey_copy), "--json"]
    drivers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [driver.wait(300) for driver in drivers] == [0, 0]
    assert verbs.validate(Survey(load(survey_copy))).problems == []
    assert leaves(survey_copy) == leaves(published_survey)


def test_going_back_to_an_earlier_setting_publishes_the_same_release_untouched(
    published_survey, tmp_path
):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    survey = tmp_path / "copy" / "survey.toml"
    first = release_folder(survey)
    properties = (first / "hats.properties").read_bytes()
    verbs.run(Survey(load(survey, ["products.photometry.aperture=1.5"])))
    assert release_folder(survey) != first
    assert verbs.run(Survey(load(survey))).rows_computed == 0
    assert release_folder(survey) == first
    assert (first / "hats.properties").read_bytes() == properties


def test_a_gate_refuses_and_the_pointer_stays(published_survey, tmp_path):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    survey = tmp_path / "copy" / "survey.toml"
    before = release_folder(survey)
    with pytest.raises(GateError, match=r"null share +flux_H") as caught:
        verbs.run(
            Survey(load(survey, ["gates.max_null_share=0.0", "products.photometry.aperture=1.5"]))
        )
    assert caught.value.exit_code == 3
    assert release_folder(survey) == before
    # The work is kept: with the gate opened only publishing is left.
    done = verbs.run(Survey(load(survey, ["products.photometry.aperture=1.5"])))
    assert done.units_resumed == done.units
    assert release_folder(survey) != before
    listed = verbs.releases(Survey(load(survey))).releases
    assert [one.current for one in listed] == [False, True]


def test_validate_finds_a_changed_leaf(published_survey, tmp_path):
    shutil.copytree(published_survey.parent, tmp_path / "copy")
    survey = tmp_path / "copy" / "survey.toml"
    assert verbs.validate(Survey(load(survey))).problems == []
    leaf = next(release_folder(survey).glob("dataset/**/Npix*.parquet"))
    data = bytearray(leaf.read_bytes())
    data[100] ^= 0xFF
    leaf.write_bytes(bytes(data))
    assert any("differs" in problem for problem in verbs.validate(Survey(load(survey))).problems)


def test_missing_band_is_null_and_flagged(published_survey):
    out = published_rows(published_survey)
    null = out["flux_H"].is_null().to_numpy()
    flagged = out["photometry_flag"].to_numpy() & schemas.flag("missing_band") != 0
    assert null.any()
    assert not null.all()
    np.testing.assert_array_equal(null, flagged)


def test_photometry_agrees_with_the_truth(published_survey):
    truth = pq.read_table(published_survey.parent / "truth.parquet").to_pandas()
    truth = truth.set_index("object_id")
    out = published_rows(published_survey).to_pandas().set_index("object_id")
    both = out.join(truth[["mag_r", "is_star", "half_light_radius", "blended"]])
    compact = both["is_star"].astype(bool) | (both["half_light_radius"] < 0.3)
    chosen = both[compact & ~both["blended"] & (both["mag_r"] < 23.5)]
    difference = 31.4 - 2.5 * np.log10(chosen["flux_r"]) - chosen["mag_r"]
    # The aperture loses some light of everything, more of what is larger.
    assert len(chosen) > 5
    assert 0.0 < difference.median() < 0.25
    assert difference.between(-0.1, 0.5).all()


def test_a_corrupt_chunk_flags_its_objects_until_its_cube_is_built_anew(
    survey_copy, published_survey
):
    shard = max(
        survey_copy.parent.glob("store/images/*/*/image/c/**/*"), key=lambda p: len(p.parts)
    )
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(bytes(data))
    survey = Survey(load(survey_copy))
    done = verbs.run(survey)
    assert done.rows == 240
    assert 0 < done.flags["photometry"]["corrupt_data"] < 240
    assert done.damaged

    # Nothing has changed, so nothing is published; what is not final is tried.
    again = verbs.run(survey)
    assert (again.did, again.release) == ("nothing", done.release)

    # The cube is void: the same files make it anew, and the same inputs the units that lack pixels.
    assert verbs.ingest(survey).tiles.written == 1
    mended = verbs.run(survey)
    assert mended.release == f"{done.release}.2"  # the name of what was not published is used up
    assert mended.units_computed == len(done.damaged)
    assert mended.units_adopted == mended.units - len(done.damaged)
    assert mended.damaged == []
    assert "corrupt_data" not in mended.flags["photometry"]
    assert leaves(survey_copy) == leaves(published_survey)
    assert verbs.run(survey).did == "nothing"
    assert verbs.ingest(survey).tiles.written == 0


def test_missing_cube_fails_its_units_only_and_says_so(survey_copy):
    cube = next(survey_copy.parent.glob("store/images/t00/*"))
    hidden = cube.rename(cube.parent / "hidden")
    with pytest.raises(UnitsFailedError, match="units failed; the others are kept") as caught:
        verbs.run(Survey(load(survey_copy)))
    assert "t00" in str(caught.value)
    hidden.rename(cube)
    done = verbs.run(Survey(load(survey_copy)))
    assert done.units_resumed > 0


def test_evaluate_and_report(published_survey):
    metrics = verbs.evaluate(Survey(load(published_survey)))
    assert metrics.matched > 50
    assert np.isfinite([metrics.all["nmad"], metrics.unflagged["nmad_err"]]).all()
    assert set(metrics.bins) == {"true_redshift", "predicted_redshift", "magnitude_K"}
    for rows in metrics.bins.values():
        assert 0 < sum(row["n"] for row in rows) <= metrics.matched
    assert metrics.pdf["all"]["n"] == metrics.all["n"]
    assert 0 < metrics.pdf["all"]["crps"] < 2
    assert 0.5 in metrics.pdf["levels"]
    page = Path(write_report(Survey(load(published_survey))).report).read_text()
    assert "240" in page
    assert page.count("data:image/png;base64,") == 4
    assert "http://" not in page
    assert "https://" not in page


def test_a_column_of_any_name_against_another_one(published_survey, tmp_path):
    config = load(published_survey)
    own = verbs.evaluate(Survey(config))
    copy = Path(shutil.copytree(own.catalog, tmp_path / "theirs"))
    random = np.random.default_rng(1)
    for leaf in (*copy.rglob("*.parquet"), *copy.rglob("_*metadata")):
        if leaf.name == "_metadata":
            leaf.unlink()
            continue
        table = pq.read_table(leaf)
        mine = table.column_names.index(own.column)
        noisy = table[own.column].to_numpy() + random.normal(0, 0.3, table.num_rows)
        renamed = table.set_column(mine, "zphot", table[own.column])
        pq.write_table(renamed.append_column("worse", pa.array(noisy)), leaf)
    with pytest.raises(ConfigError, match="no redshifts of ours"):
        verbs.evaluate(Survey(config), str(_without(copy, "_z_point", tmp_path / "bare")))
    with pytest.raises(ConfigError, match="no column 'nowhere'"):
        verbs.evaluate(Survey(config), str(copy), column="zphot", baseline="nowhere")
    found = verbs.evaluate(Survey(config), str(copy), column="zphot", baseline="worse")
    assert found.all == own.all
    assert found.pdf is found.unflagged is None
    gain = found.against.gains["nmad"]
    assert gain.gain == pytest.approx(gain.delta / gain.baseline)
    assert gain.candidate == pytest.approx(own.all["nmad"])
    assert gain.gain > 0
    assert gain.p_value < 0.05
    back = verbs.evaluate(Survey(config), str(copy), column="worse", baseline="zphot")
    assert back.against.gains["nmad"].delta == pytest.approx(-gain.delta)


def _without(catalog, ending, out):
    shutil.copytree(catalog, out)
    for leaf in (*out.rglob("*.parquet"), *out.rglob("_*metadata")):
        table = pq.read_table(leaf)
        kept = [name for name in table.column_names if not name.endswith(ending)]
        pq.write_table(table.select(kept), leaf)
    return out


def test_any_catalog_can_be_evaluated(published_survey, tmp_path):
    config = load(published_survey)
    own = verbs.evaluate(Survey(config), outlier=0.05)
    copy = shutil.copytree(own.catalog, tmp_path / "elsewhere")
    for catalog in (str(copy), f"file://{copy}/"):
        other = verbs.evaluate(Survey(config), catalog, 0.05)
        assert other.release is other.rows is other.rejected is None
        expected = replace(own, catalog=other.catalog, release=None, rows=None, rejected=None)
        # As text, where NaN equals NaN.
        assert str(other) == str(expected)
    assert own.all["outlier_fraction"] > verbs.evaluate(Survey(config)).all["outlier_fraction"]
    with pytest.raises(InputError, match="no HATS catalog"):
        verbs.evaluate(Survey(config), str(tmp_path / "nowhere"))


def test_verbs_before_ingest_say_what_to_do(tmp_path, published_survey):
    survey = tmp_path / "survey.toml"
    survey.write_text(published_survey.read_text())
    with pytest.raises(InputError, match="surveyproc ingest"):
        verbs.run(Survey(load(survey)))
    with pytest.raises(InputError, match="surveyproc run"):
        verbs.releases(Survey(load(survey)))


def test_product_that_reads_what_nobody_writes(published_survey, tmp_path):
    survey = tmp_path / "survey.toml"
    text = published_survey.read_text().replace("./store", str(published_survey.parent / "store"))
    blocks = text.split("[[products]]")
    survey.write_text(blocks[0] + "[[products]]" + "[[products]]".join(blocks[2:]))
    with pytest.raises(ConfigError, match="reads flux_u"):
        verbs.plan(Survey(load(survey)))


def test_commit_records_hold_what_the_design_says(published_survey):
    records = list((published_survey.parent / "store/runs").glob("*/commits/*.json"))
    assert records
    document = json.loads(records[0].read_text())
    assert set(document) == {
        *("unit", "leaf", "stats", "flags", "band_flags", "seconds", "provenance"),
        *("products", "carried", "tables", "pixels", "indexes", "device"),
        *("adopted", "quarantined", "record_sha256"),
    }


def test_a_changed_column_declaration_makes_another_run(published_survey, monkeypatch):
    config = load(published_survey)
    Store(config.root)
    before = make_plan(Survey(config))
    declared = schemas.load

    def reworded(name, **names):
        return tuple(replace(c, description="Other words.") for c in declared(name, **names))

    monkeypatch.setattr(schemas, "load", reworded)
    after = make_plan(Survey(config))
    assert after.run != before.run
    assert not {unit.name for unit in after.units} & {unit.name for unit in before.units}
