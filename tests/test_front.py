"""The library's front door."""

import numpy as np
import pytest

import surveyproc
from surveyproc import schemas
from surveyproc.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def survey(published_survey):
    return surveyproc.open(published_survey)


def test_the_published_catalog(survey):
    rows = survey.catalog(columns=["object_id", "flux_r"]).compute()
    assert {"object_id", "flux_r"} <= set(rows.columns)
    assert "flux_u" not in rows.columns
    assert len(survey.catalog().compute()) == len(rows)
    with pytest.raises(InputError, match="no finished release of simulated is called 'r0'"):
        survey.catalog("r0")
    with pytest.raises(InputError, match=r"has no table 'peaks' with rows \(there are: none\)"):
        survey.table("peaks")


def test_cutouts_come_in_the_order_of_the_positions(survey):
    rows = survey.catalog(columns=["object_id", "ra", "dec"]).compute().iloc[[5, 0, 9]]
    batch = survey.cutouts(rows["ra"], rows["dec"], 16)
    assert batch.images.shape == (3, len(survey.config.images.bands), 16, 16)
    for place in range(3):
        one = survey.cutouts(rows["ra"].iloc[place], rows["dec"].iloc[place], 16)
        np.testing.assert_array_equal(one.images[0], batch.images[place])
        assert one.tiles[0] == batch.tiles[place]
    assert {tile.id for tile in survey.tiles} >= set(batch.tiles)
    two = survey.cutouts(rows["ra"], rows["dec"], 16, ["r", "g"])
    bands = list(survey.config.images.bands)
    picked = batch.images[:, [bands.index("r"), bands.index("g")]]
    np.testing.assert_array_equal(two.images, picked)


def test_a_position_that_no_tile_covers_and_a_band_that_is_not_there(survey):
    batch = survey.cutouts([200.0], [80.0], 8)
    assert np.isnan(batch.images).all()
    assert batch.flags[0] == schemas.flag("no_image")
    with pytest.raises(ConfigError, match=r"'W1' is not in images\.bands"):
        survey.cutouts([200.0], [80.0], 8, ["W1"])


def test_it_is_what_the_verbs_take(survey):
    from surveyproc import verbs

    assert verbs.plan(survey).published
