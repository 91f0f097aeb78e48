from dataclasses import replace

import numpy as np
import pytest
from astropy.stats import sigma_clip
from hypothesis import given
from hypothesis import strategies as st
from photutils.aperture import CircularAperture
from photutils.aperture import aperture_photometry as photutils_photometry

from surveyproc.errors import ConfigError
from surveyproc.images.cutouts import cut, nearest_pixel
from surveyproc.measure.aperture import (
    MAX_CUTOUT,
    annulus_for,
    aperture_photometry,
    aperture_weights,
    clipped_background,
    cutout_for,
    side_of,
    with_photon_noise,
)
from surveyproc.products.base import Batch, Product
from surveyproc.products.photometry import AperturePhotometry
from surveyproc.schemas import flag

ANNULUS = (12.0, 20.0)


def stars(
    n: int,
    flux: float,
    noise: float,
    level: float = 0.0,
    bands: int = 2,
    sigma: float = 1.5,
    side: int = 48,
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian stars at sub-pixel places on noise: images (n, band, side, side) and offsets."""
    rng = np.random.default_rng(1)
    offsets = rng.uniform(-0.5, 0.5, (n, 2))
    grid = np.arange(side) - side // 2
    gx = np.exp(-((grid - offsets[:, :1]) ** 2) / (2 * sigma**2))
    gy = np.exp(-((grid - offsets[:, 1:]) ** 2) / (2 * sigma**2))
    profile = gy[:, :, None] * gx[:, None, :] / (2 * np.pi * sigma**2)
    images = np.repeat((flux * profile + level)[:, None], bands, axis=1)
    images += rng.normal(0, noise, images.shape)
    return images.astype(np.float32), offsets


@pytest.mark.parametrize("radius", [0.3, 2.0, 3.37, 7.0])
def test_weights_are_the_exact_overlap(radius):
    offsets = np.array([[0.0, 0.0], [0.5, -0.5], [-0.31, 0.17]])
    weights = aperture_weights(offsets, radius)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), np.pi * radius**2, rtol=1e-12)
    half = weights.shape[1] // 2
    for offset, weight in zip(offsets, weights, strict=True):
        mask = CircularAperture(half + offset, radius).to_mask(method="exact")
        np.testing.assert_allclose(weight, mask.to_image(weight.shape), atol=1e-12)


def test_fluxes_equal_photutils_and_the_truth():
    images, offsets = stars(20, flux=1000.0, noise=0.5, level=33.0)
    flux, _, bad = aperture_photometry(images, None, offsets, 5.0, ANNULUS)
    assert not bad.any()
    inside = 1 - np.exp(-(5.0**2) / (2 * 1.5**2))
    np.testing.assert_allclose(flux, 1000 * inside, rtol=0.03)
    level, _, _ = clipped_background(ring_of(images))
    for i in range(20):
        for band in range(2):
            aperture = CircularAperture(24 + offsets[i], 5.0)
            data = images[i, band].astype(np.float64) - level[i, band]
            expected = photutils_photometry(data, aperture, method="exact")["aperture_sum"][0]
            assert flux[i, band] == pytest.approx(expected, rel=1e-5)


def ring_of(images: np.ndarray) -> np.ndarray:
    row, column = np.indices((48, 48)) - 24
    distance = np.hypot(row, column)
    return images[:, :, (distance >= ANNULUS[0]) & (distance < ANNULUS[1])].copy()


def test_background_is_the_clipped_median():
    images, _ = stars(5, flux=0.0, noise=2.0, level=10.0)
    ring = ring_of(images)
    ring[:, :, :30] += 500  # a neighbour
    ring[:, :, 30:40] = np.nan
    median, scatter, count = clipped_background(ring.copy())
    reference = sigma_clip(np.ma.masked_invalid(ring), sigma=3, axis=-1, masked=True, maxiters=5)
    np.testing.assert_allclose(median, np.ma.median(reference, axis=-1), atol=0.02)
    np.testing.assert_allclose(scatter, 2.0, rtol=0.12)
    assert (count <= ring.shape[-1] - 40).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("radius", [1.2, 4.0])
def test_errors_are_calibrated(weighted, radius):
    images, offsets = stars(3000, flux=0.0, noise=3.0, level=7.0, bands=1)
    variance = np.full_like(images, 9.0) if weighted else None
    flux, error, _ = aperture_photometry(images, variance, offsets, radius, ANNULUS)
    pull = flux / error
    assert pull.std() == pytest.approx(1.0, abs=0.06)
    assert pull.mean() == pytest.approx(0.0, abs=0.07)


def test_nan_pixels_count_as_background_and_are_reported():
    images, offsets = stars(3, flux=0.0, noise=0.1, level=100.0)
    images[0, 0, 24, 25] = np.nan
    images[1, 1, 24, 24 + 15] = np.inf  # in the annulus only
    images[2, 0] = np.nan
    flux, error, bad = aperture_photometry(images, None, offsets, 4.0, ANNULUS)
    assert bad.tolist() == [[True, False], [False, False], [True, False]]
    assert abs(flux[0, 0]) < 5 * error[0, 0]
    assert np.isnan(flux[2, 0])
    assert np.isnan(error[2, 0])
    assert np.isfinite(flux[2, 1])
    # A variance that is unknown is replaced by the scatter of the annulus.
    unknown = np.full_like(images, np.nan)
    np.testing.assert_allclose(
        aperture_photometry(images, unknown, offsets, 4.0, ANNULUS)[1], error
    )


def test_no_background_no_flux():
    images, offsets = stars(1, flux=10.0, noise=1.0)
    ring = np.hypot(*(np.indices((48, 48)) - 24)) > 6
    images[:, 0, ring] = np.nan
    flux, _, bad = aperture_photometry(images, None, offsets, 4.0, ANNULUS)
    assert np.isnan(flux[0, 0])
    assert bad.tolist() == [[True, False]]


def test_half_an_annulus_is_no_background_to_trust():
    images, offsets = stars(2, flux=10.0, noise=1.0, bands=1)
    images[0, 0, :, : 24 - 8] = np.nan  # less than half of the ring
    images[1, 0, :, : 24 + 8] = np.nan
    _, _, bad = aperture_photometry(images, None, offsets, 4.0, ANNULUS)
    assert bad.tolist() == [[False], [True]]


def test_an_aperture_that_does_not_fit():
    images, offsets = stars(1, flux=1.0, noise=1.0)
    for radius, annulus in ((30.0, ANNULUS), (4.0, (12.0, 24.1))):
        with pytest.raises(ValueError, match="does not fit"):
            aperture_photometry(images, None, offsets, radius, annulus)
    found = r"products\.photometry\.aperture: 60 arcsec .* at the 0\.2 .* of tile t7.*51\.2 arcsec"
    with pytest.raises(ConfigError, match=found):
        cutout_for([1.0, 60.0], 0.2, "t7")


@given(st.floats(0.05, 300))
def test_annulus_lies_around_the_aperture_within_its_cutout(radius):
    inner, outer = annulus_for(radius)
    assert radius < inner < outer - 2
    side = side_of((inner, outer))
    row, column = np.indices((side, side)) - side // 2
    assert np.hypot(row, column)[0].min() >= outer  # the row and column that an odd side lacks
    assert radius + 1 <= side // 2 - 1
    if side <= MAX_CUTOUT:
        assert cutout_for([radius * 0.25, radius * 0.125], 0.25, "t") == side


@given(st.floats(0.5, 6.0), st.integers(3, 60), st.integers(3, 60), st.data())
def test_edge_means_that_aperture_or_annulus_lack_pixels_of_the_tile(radius, ny, nx, data):
    x = np.array([data.draw(st.floats(-0.5, nx - 0.5))])
    y = np.array([data.draw(st.floats(-0.5, ny - 0.5))])
    product = AperturePhotometry(["r"], [radius], cutout_for([radius], 1.0, "t"))
    tile = np.ones((1, ny, nx), np.float32)
    column, row = nearest_pixel(x, y, (ny, nx))
    images = cut(tile, column, row, (0, 0), product.cutout)
    offsets = np.stack([x - column, y - row], axis=-1)
    out = product.compute(
        Batch(
            columns={},
            flags=np.array([flag("edge")], np.int32),  # of a larger cutout: not what is meant
            images=images,
            offsets=offsets,
            positions=np.stack([x, y], axis=-1),
            tiles=np.array(["t"], object),
            tile_shape=np.array([[ny, nx]], np.int32),
            pixel_scale=np.array([1.0]),
        )
    )
    grid = np.indices((product.cutout, product.cutout)) - product.cutout // 2
    inner, outer = annulus_for(radius)
    distance = np.hypot(*grid)
    needed = (distance >= inner) & (distance < outer)
    half = int(np.ceil(radius))
    box = np.s_[product.cutout // 2 - half : product.cutout // 2 + half + 1]
    needed[box, box] |= aperture_weights(offsets, radius)[0] > 0
    lacking = bool((np.isnan(images[0, 0]) & needed).any())
    assert bool(out["photometry_flag_r"][0] & flag("edge")) == lacking
    assert bool(out["photometry_flag"][0] & flag("edge")) == lacking


def batch(**changes) -> Batch:
    images, offsets = stars(4, flux=500.0, noise=0.5, side=64)
    values = {
        "columns": {},
        "flags": np.zeros(4, np.int32),
        "images": images,
        "variance": np.full(images.shape, 0.25, np.float32),
        "offsets": offsets.astype(np.float32),
        "positions": np.full((4, 2), 300.25),
        "tiles": np.array(["a", "a", "b", None], object),
        "tile_shape": np.array([[900, 800]] * 3 + [[0, 0]], np.int32),
        "pixel_scale": np.array([0.2, 0.2, 0.3, np.nan]),
    }
    values["flags"][3] = flag("no_image")
    values["images"][3] = np.nan
    return Batch(**{**values, **changes})


def test_product_measures_each_pixel_scale_with_its_own_aperture():
    product = AperturePhotometry(["g", "r"], [1.0])
    assert isinstance(product, Product)
    out = product.compute(batch())
    assert set(out) == {column.name for column in product.columns}
    inside = [1 - np.exp(-((1.0 / scale) ** 2) / (2 * 1.5**2)) for scale in (0.2, 0.2, 0.3)]
    np.testing.assert_allclose(out["flux_g"][:3], 500 * np.array(inside), rtol=0.05)
    assert np.isnan(out["flux_g"][3])
    for name in ("photometry_flag", "photometry_flag_g", "photometry_flag_r"):
        assert out[name].tolist() == [0, 0, 0, flag("no_image")]
    assert out["photometry_tile"].tolist() == ["a", "a", "b", None]
    assert out["photometry_x"].dtype == np.float32
    assert product.version != AperturePhotometry(["g", "r"], [1.1]).version


def test_every_aperture_is_measured_as_if_it_were_alone():
    radii = [1.0, 0.5, 1.25]
    several = AperturePhotometry(["g", "r"], radii).compute(batch())
    for radius, suffix in zip(radii, ("", "_0p5", "_1p25"), strict=True):
        alone = AperturePhotometry(["g", "r"], [radius]).compute(batch())
        for name in ("flux_g", "flux_err_g", "photometry_flag_r", "flux_r"):
            np.testing.assert_array_equal(several[name + suffix], alone[name])
    assert (several["flux_g_0p5"][:3] < several["flux_g"][:3]).all()


def test_the_size_of_the_cutout_changes_nothing():
    small, large = (AperturePhotometry(["g", "r"], [1.0], side) for side in (50, 64))
    assert small.version == large.version
    whole = batch()
    cut = {name: getattr(whole, name)[..., 7:57, 7:57] for name in ("images", "variance")}
    one = small.compute(replace(whole, **cut))
    for name, values in large.compute(whole).items():
        np.testing.assert_array_equal(one[name], values)


def test_flags_of_bands_and_of_the_row():
    images = batch().images.copy()
    images[0, 0] = np.nan
    images[1, 1, 32, 32] = np.nan
    product = AperturePhotometry(["g", "r"], [1.0])
    out = product.compute(batch(images=images))
    missing, spoilt, absent = flag("missing_band"), flag("bad_pixels"), flag("no_image")
    assert out["photometry_flag_g"].tolist() == [missing, 0, 0, absent]
    assert out["photometry_flag_r"].tolist() == [0, spoilt, 0, absent]
    assert out["photometry_flag"].tolist() == [missing, spoilt, 0, absent]
    corrupt = np.array([flag("corrupt_data"), 0, 0, 0], np.int32)
    out = product.compute(batch(flags=corrupt))
    assert out["photometry_flag"][0] == out["photometry_flag_r"][0] == flag("corrupt_data")
    assert np.isnan(out["flux_r"][0])


def test_only_the_aperture_that_is_cut_has_the_flag():
    # 15 px to the left edge: the small annulus ends at 12.5 px, the large one at 25.
    near = np.array([[15.25, 300.0]] + [[300.0, 300.0]] * 3)
    out = AperturePhotometry(["g", "r"], [0.5, 1.0]).compute(batch(positions=near))
    assert out["photometry_flag_g"].tolist()[:3] == [0, 0, 0]
    assert out["photometry_flag_g_1p0"].tolist()[:3] == [flag("edge"), 0, 0]
    assert out["photometry_flag"].tolist()[:3] == [flag("edge"), 0, 0]


def test_product_without_images_gives_nulls():
    empty = Batch(columns={}, flags=np.full(2, flag("no_image"), np.int32))
    out = AperturePhotometry(["g"], [1.0]).compute(empty)
    assert np.isnan(out["flux_g"]).all()
    assert out["photometry_flag"].tolist() == [flag("no_image")] * 2


def test_photon_noise_is_that_of_drawn_electrons():
    """Fluxes of Poisson electrons scatter by the error that the gain gives."""
    rng = np.random.default_rng(7)
    electron_flux = np.array([[2.5, 0.4]])
    electrons = rng.poisson([[900.0, 6000.0]], (4000, 2))
    flux = electrons * electron_flux
    error = with_photon_noise(flux, np.zeros_like(flux), np.broadcast_to(electron_flux, flux.shape))
    np.testing.assert_allclose(np.median(error, axis=0), flux.std(axis=0), rtol=0.04)
    # Unknown gains and negative fluxes add nothing.
    np.testing.assert_array_equal(
        with_photon_noise(
            np.array([[5.0, -5.0, np.nan]]), np.full((1, 3), 2.0), np.array([[np.nan, 1.0, 1.0]])
        ),
        [[2.0, 2.0, np.nan]],
    )


def test_where_neither_weights_nor_gain_are_known_the_flags_of_bands_say_so():
    product = AperturePhotometry(["g", "r"], [1.0])
    blind = batch(variance=None)
    variance = blind.images * 0 + np.float32(0.25)
    variance[:, 1] = np.nan  # the band r has no weights
    gain = np.array([[np.nan, 0.5]] * 4)
    for one, flagged in (
        (blind, {"g", "r"}),
        (batch(variance=variance), {"r"}),
        (batch(variance=variance, electron_flux=gain), set()),
    ):
        out = product.compute(one)
        for band in ("g", "r"):
            expected = flag("background_errors") if band in flagged else 0
            assert set(out[f"photometry_flag_{band}"][:3]) == {expected}
            assert out[f"photometry_flag_{band}"][3] == flag("no_image")
        assert out["photometry_flag"].tolist() == [0, 0, 0, flag("no_image")]
    plain = product.compute(batch())
    noisy = product.compute(batch(electron_flux=gain))
    np.testing.assert_array_equal(noisy["flux_err_g"], plain["flux_err_g"])
    expected = np.hypot(plain["flux_err_r"], np.sqrt(0.5 * plain["flux_r"]))
    np.testing.assert_allclose(noisy["flux_err_r"][:3], expected[:3], rtol=1e-5)
