"""Which columns an evaluation reads."""

import numpy as np
import pytest

from surveyproc import schemas
from surveyproc.errors import ConfigError, InputError
from surveyproc.verbs.evaluation import Columns, choose_columns, find_catalog, metrics

OURS = [
    *("ra", "dec", "flux_r", "flux_K", "photometry_flag"),
    *("net_z_point", "net_z_median", "net_z_quantiles", "photoz_flag"),
    *("other_z_point", "photoz_other_flag", "theirs_z_median", "their_flag", "mag"),
]
BANDS = ("g", "r", "K", "L")


@pytest.mark.parametrize(
    ("point", "pdfs", "flag"),
    [
        (None, "net_z_quantiles", "photoz_flag"),
        ("net_z_point", "net_z_quantiles", "photoz_flag"),
        ("other_z_point", "", "photoz_other_flag"),
        # Of somebody else: what follows it may be anything.
        ("theirs_z_median", "", ""),
        ("mag", "", ""),
    ],
)
def test_pdfs_and_flag_belong_to_the_redshift(point, pdfs, flag):
    chosen = choose_columns(OURS, "here", BANDS, point, None, None)
    assert chosen == Columns(point or "net_z_median", "", pdfs, flag, "flux_K")


def test_columns_are_read_once_each():
    chosen = choose_columns(OURS, "here", (), "ra", "ra", None)
    assert chosen == Columns("ra", "ra", "", "", "")
    assert chosen.all == ["ra"]
    assert chosen.numbers == ["ra", "ra"]


def test_what_is_not_there_is_named_beside_what_is():
    with pytest.raises(ConfigError, match="here has no column 'z'; try net_z_median, theirs_z_med"):
        choose_columns(OURS, "here", BANDS, "z", None, None)
    with pytest.raises(ConfigError, match="has no column 'm'; try ra, dec, flux_r"):
        choose_columns(OURS, "here", BANDS, None, None, "m")
    with pytest.raises(ConfigError, match="has no column 'b'; try ra, mag"):
        choose_columns(["ra", "mag"], "here", BANDS, "mag", "b", None)
    with pytest.raises(ConfigError, match="here has no redshifts of ours"):
        choose_columns(["ra", "mag"], "here", BANDS, None, None, None)


def test_unrecognised_blends_are_left_out_where_the_catalog_tells_them():
    names = [*OURS, "blend_probability", "blend_probability_flag"]
    chosen = choose_columns(names, "here", BANDS, None, None, None)
    assert chosen.blends == "blend_probability_flag"
    assert chosen.blends in chosen.all
    z = np.linspace(0.1, 1.0, 40)
    flags = np.where(np.arange(40) % 4 == 0, schemas.flag("unrecognised_blend", "edge"), 2)
    levels = np.array(schemas.pdf_levels())
    values = {
        "net_z_median": z + np.where(np.arange(40) % 4 == 0, 0.5, 0.0),
        "net_z_quantiles": z[:, None] + 0.1 * (levels - 0.5),
        "photoz_flag": np.zeros(40),
        "flux_K": np.full(40, 1e3),
        "blend_probability_flag": flags.astype(float),
    }
    found = metrics(chosen, values, z, 0.15)
    assert (found.all["n"], found.recognised["n"]) == (40, 30)
    assert found.all["outlier_fraction"] == 0.25
    assert found.recognised["outlier_fraction"] == 0.0
    assert set(found.samples) == {"all", "unflagged", "recognised"}
    assert found.pdf["recognised"]["n"] == 30


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.1:9/a", "s3://bucket/a", "/etc"])
def test_a_collection_sends_nobody_to_another_host(tmp_path, web, elsewhere):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/collection.properties").write_text(
        f"obs_collection=x\nhats_primary_table_url={elsewhere}\n"
    )
    with pytest.raises(InputError, match=f"sends to {elsewhere}, which is not followed"):
        find_catalog(None, f"{web(tmp_path)}/theirs")
    if "://" in elsewhere:
        with pytest.raises(InputError, match="name that catalog itself"):
            find_catalog(None, str(tmp_path / "theirs"))
