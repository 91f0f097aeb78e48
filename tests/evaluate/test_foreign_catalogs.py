"""Catalogs that others wrote: whatever LSDB makes can be evaluated, under any names."""

from dataclasses import replace
from pathlib import Path

import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surveyproc import schemas, verbs
from surveyproc.catalogs.foreign import leaf_tables
from surveyproc.config import SurveyConfig, load
from surveyproc.errors import ConfigError, InputError
from surveyproc.schemas import AB_ZEROPOINT_NJY
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

ROWS = 400
SHIFTS = np.array([0.0, 0.08, 0.12, 0.3])
"""Scaled errors, each of a quarter of the objects."""


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(5)
    z = random.uniform(0.1, 1.5, ROWS)
    return pd.DataFrame(
        {
            "RAJ2000": random.uniform(10.0, 14.0, ROWS),
            "DEJ2000": random.uniform(-2.0, 2.0, ROWS),
            "photo_z_best": z + np.resize(SHIFTS, ROWS) * (1 + z),
            "star_flag": 1,
            "mag_i": random.uniform(18.0, 24.0, ROWS),
            "kind": "galaxy",
            "z_true": z,
        }
    )


@pytest.fixture
def config(frame, tmp_path) -> SurveyConfig:
    frame.to_parquet(tmp_path / "truth.parquet")
    positions = {"ra": "RAJ2000", "dec": "DEJ2000", "redshift": "z_true"}
    return SurveyConfig.model_validate(
        {
            "survey": {"name": "test", "root": str(tmp_path / "store")},
            "images": {"tiles": ["none"], "bands": ["g", "r"]},
            "catalog": {"source": "none"},
            "truth": {"source": str(tmp_path / "truth.parquet"), **positions},
        }
    )


def write(frame, folder, **options) -> str:
    catalog = lsdb.from_dataframe(
        frame, ra_column="RAJ2000", dec_column="DEJ2000", catalog_name="theirs", partition_rows=90
    )
    catalog.write_catalog(folder, progress_bar=False, **options)
    return str(folder)


def test_a_collection_as_lsdb_writes_it(config, frame, tmp_path, web):
    folder = write(frame, tmp_path / "collection")
    assert Path(folder, "collection.properties").is_file()
    found = verbs.evaluate(Survey(config), folder, column="photo_z_best")
    assert (found.matched, found.all["n"], found.catalog) == (ROWS, ROWS, folder)
    for url in (f"{web(tmp_path)}/collection", f"file://{folder}/"):
        again = verbs.evaluate(Survey(config), url, column="photo_z_best")
        assert again == replace(found, catalog=url.rstrip("/"))


def test_a_collection_whose_main_catalog_lies_elsewhere(config, frame, tmp_path):
    folder = write(frame, tmp_path / "collection")
    elsewhere = Path(folder, "theirs").rename(tmp_path / "elsewhere")
    properties = Path(folder, "collection.properties")
    text = properties.read_text()
    for main in (elsewhere, elsewhere.as_uri()):
        properties.write_text(text.replace("table_url=theirs", f"table_url={main}"))
        assert verbs.evaluate(Survey(config), folder, column="photo_z_best").matched == ROWS
    properties.write_text(text.replace("table_url=theirs", "table_url=nowhere"))
    with pytest.raises(InputError, match="no HATS catalog"):
        verbs.evaluate(Survey(config), folder, column="photo_z_best")


@pytest.mark.parametrize("suffix", [".parquet", ".parq", "/"])
def test_leaves_of_all_forms(config, frame, tmp_path, suffix, web):
    folder = write(frame, tmp_path / "catalog", as_collection=False, npix_suffix=suffix)
    leaves = sorted(Path(folder).glob(f"dataset/*/*/Npix=*{suffix.strip('/')}"))
    assert len(leaves) > 4
    if suffix == "/":
        assert leaves[0].is_dir()
        (whole,) = leaves[0].iterdir()
        table = pq.read_table(whole)
        # A folder may hold several files, and what is no part of the table.
        for name, part in (("a", table.slice(0, 10)), ("b", table.slice(10)), ("c", table[:0])):
            pq.write_table(part, whole.parent / f"part-{name}.parquet")
        whole.rename(whole.parent / "_whole.parquet")
        Path(whole.parent, ".part-a.parquet.crc").write_bytes(b"crc")
    for url in (folder, f"{web(tmp_path)}/catalog"):
        found = verbs.evaluate(Survey(config), url, column="photo_z_best")
        assert found.matched == found.all["n"] == ROWS


@pytest.mark.parametrize("all_leaves", [True, False])
def test_a_leaf_that_kills_its_reader_is_named(config, frame, tmp_path, all_leaves):
    folder = write(frame, tmp_path / "catalog", as_collection=False)
    leaves = sorted(Path(folder).glob("dataset/*/*/Npix=*.parquet"))
    for leaf in leaves if all_leaves else leaves[-1:]:
        data = leaf.read_bytes()
        # One bit of the footer: that a column has a value in every row makes Arrow abort.
        optional = b"\x25\x02\x18\x07RAJ2000"
        assert data.count(optional) == 1
        leaf.write_bytes(data.replace(optional, optional.replace(b"\x02", b"\x00", 1)))
    with pytest.raises(InputError, match=r"Npix=\d+\.parquet: (its process died|truncated)"):
        verbs.evaluate(Survey(config), folder, column="photo_z_best")


def test_columns_that_nobody_asks_for_may_be_of_any_kind(config, frame, tmp_path):
    frame["curve"] = [[{"time": 1.0, "flux": 2.0}]] * ROWS
    folder = write(frame, tmp_path / "catalog", as_collection=False)
    assert verbs.evaluate(Survey(config), folder, column="photo_z_best").matched == ROWS


def test_a_small_leaf_of_rows_that_fill_the_memory_is_refused(tmp_path):
    wide = pa.array([np.zeros(100_000)] * 90)
    pq.write_table(pa.table({"wide": wide}), tmp_path / "Npix=1.parquet", compression="zstd")
    assert (tmp_path / "Npix=1.parquet").stat().st_size < 100_000
    with pytest.raises(InputError, match=r"Npix=1\.parquet: its rows are 800 kB long"):
        list(leaf_tables(Store(str(tmp_path)), "Npix=1.parquet", ["wide"]))


def test_a_column_that_looks_like_ours_is_not(config, frame, tmp_path):
    folder = write(frame, tmp_path / "catalog")
    found = verbs.evaluate(Survey(config), folder, column="photo_z_best")
    assert found.unflagged is found.pdf is None
    with pytest.raises(ConfigError, match="no redshifts of ours"):
        verbs.evaluate(Survey(config), folder)
    with pytest.raises(InputError, match="'kind' is not numeric"):
        verbs.evaluate(Survey(config), folder, column="kind")


def test_only_the_flag_of_its_own_product_belongs_to_a_column(config, frame, tmp_path):
    levels = schemas.pdf_levels()
    ours = {}
    for model, product, every in (("net", "photoz", 2), ("other_z", "photoz_more", 4)):
        ours[f"{model}_z_median"] = frame["z_true"]
        ours[f"{model}_z_mean"] = frame["z_true"] + 0.01
        ours[f"{model}_z_quantiles"] = [np.sort(np.full(len(levels), z)) for z in frame["z_true"]]
        ours[f"{product}_flag"] = (np.arange(ROWS) % every == 0).astype(np.int32)
    ours["theirs_z_median"] = frame["z_true"]
    ours["star_flag"] = 1
    both = pd.concat([frame.drop(columns="star_flag"), pd.DataFrame(ours)], axis=1)
    folder = write(both, tmp_path / "catalog")
    assert verbs.evaluate(Survey(config), folder).column == "net_z_median"
    for column, good in (("net_z_mean", 200), ("other_z_z_median", 300)):
        found = verbs.evaluate(Survey(config), folder, column=column)
        assert found.unflagged["n"] == good
        assert found.pdf["all"]["n"] == ROWS
    found = verbs.evaluate(Survey(config), folder, column="theirs_z_median")
    assert found.unflagged is found.pdf is None


def test_outliers_at_both_usual_limits_and_at_a_free_one(config, frame, tmp_path):
    folder = write(frame, tmp_path / "catalog")
    found = verbs.evaluate(Survey(config), folder, 0.1, "photo_z_best")
    assert (found.threshold, found.thresholds) == (0.1, [0.15, 0.05, 0.1])
    assert found.all["outlier_fractions"] == [0.25, 0.75, 0.5]
    assert found.all["outlier_fraction"] == 0.5
    for row in (found.all, *found.bins["true_redshift"]):
        share, n = np.array(row["outlier_fractions"]), row["n"]
        binomial = np.sqrt(share * (1 - share) / n)
        np.testing.assert_allclose(row["outlier_fractions_err"], binomial, rtol=0.3)
        # The same resamples: two ways to the same number.
        assert row["outlier_fractions_err"][2] == row["outlier_fraction_err"]
    for given in (0.15, 0.05):
        found = verbs.evaluate(Survey(config), folder, given, "photo_z_best")
        assert found.thresholds == [0.15, 0.05]
        assert found.threshold == given


def test_bins_of_the_magnitude_that_is_named(config, frame, tmp_path):
    frame["flux_i"] = 10 ** (0.4 * (AB_ZEROPOINT_NJY - frame["mag_i"]))
    frame["flux_r"] = np.where(frame["mag_i"] < 21, 1.0, 2.0)
    folder = write(frame, tmp_path / "catalog")
    column = "photo_z_best"
    assert "magnitude_r" in verbs.evaluate(Survey(config), folder, column=column).bins
    magnitudes = verbs.evaluate(Survey(config), folder, column=column, magnitude="mag_i").bins
    fluxes = verbs.evaluate(Survey(config), folder, column=column, magnitude="flux_i").bins
    assert set(magnitudes) - set(fluxes) == {"mag_i"}
    assert set(fluxes) - set(magnitudes) == {"magnitude_i"}
    low, nmad = (
        [[row[key] for row in rows] for rows in (magnitudes["mag_i"], fluxes["magnitude_i"])]
        for key in ("low", "nmad")
    )
    assert low[0] == pytest.approx(low[1])
    assert nmad[0] == nmad[1]
    assert low[0][0] == frame["mag_i"].min()
    with pytest.raises(ConfigError, match="no column 'mag_q'"):
        verbs.evaluate(Survey(config), folder, column=column, magnitude="mag_q")


def test_codes_in_the_table_of_the_truth_are_left_out_and_counted(published_survey, tmp_path):
    config = load(published_survey)
    table = pq.read_table(config.resolve(config.truth.source))
    z = table["z"].to_numpy().copy()
    clean = verbs.evaluate(Survey(config))
    known = np.isfinite(z) & table[config.truth.select].to_numpy(zero_copy_only=False)
    coded = np.flatnonzero(known)[::4]
    z[coded] = np.resize([-99.0, -1.0, 1e30], len(coded))
    changed = table.set_column(table.column_names.index("z"), "z", pa.array(z))
    pq.write_table(changed, tmp_path / "coded.parquet")
    config = load(published_survey, [f"truth.source={tmp_path / 'coded.parquet'}"])
    found = verbs.evaluate(Survey(config))
    more = len(coded) + clean.labels_dropped.get("labels without a redshift", 0)
    assert found.labels_dropped["labels without a redshift"] == more
    assert found.labels == clean.labels - len(coded)
    assert found.all["outlier_fraction"] < clean.all["outlier_fraction"] + 0.1


def test_columns_that_are_no_redshifts_are_named(published_survey):
    config = load(published_survey)
    with pytest.raises(InputError, match="'photometry_tile' is not numeric"):
        verbs.evaluate(Survey(config), column="photometry_tile")
    with pytest.raises(ConfigError, match="'gaznet_c9_z_quantiles' holds lists"):
        verbs.evaluate(Survey(config), column="gaznet_c9_z_quantiles")
    assert verbs.evaluate(Survey(config), column="ra", baseline="ra").column == "ra"
