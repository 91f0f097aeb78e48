import pickle

import numpy as np
import pytest
import torch

from surveyproc import schemas
from surveyproc.errors import ConfigError
from surveyproc.models import inference
from surveyproc.models.base import build
from surveyproc.models.features import fit_scaling
from surveyproc.models.inference import predict
from surveyproc.models.package import Package, save_package
from surveyproc.products.base import Batch, Product, use_device, wants_device
from surveyproc.products.network import column_prefix
from surveyproc.products.photoz import PhotozProduct
from surveyproc.store.storage import Store

BANDS = ("u", "g", "r", "i")
FLOATS = tuple(
    f"gaznet_c4_z_{k}"
    for k in ("point", "median", "mean", "mode", "err68_low", "err68_high", "quantiles")
)


@pytest.fixture(scope="module")
def flux():
    return np.exp(np.random.default_rng(0).normal(6, 0.5, (10_000, 4)))


@pytest.fixture(scope="module")
def package(flux, tmp_path_factory):
    torch.manual_seed(0)
    return save_package(
        Store(str(tmp_path_factory.mktemp("root"))),
        "gaznet-c4",
        architecture="gaznet-c4",
        settings={},
        bands=BANDS,
        scaling=fit_scaling(flux, None, BANDS),
        members=[build("gaznet-c4", BANDS, {}).state_dict()],
    )


def batch(flux, names=BANDS, flags=None):
    n = len(flux)
    columns = {f"flux_{band}": flux[:, k].astype(np.float32) for k, band in enumerate(names)}
    return Batch(columns, np.zeros(n, np.int32) if flags is None else flags)


def test_is_a_product_that_writes_its_schema(package, flux):
    product = PhotozProduct(package)
    assert isinstance(product, Product)
    assert product.inputs.columns == ("flux_u", "flux_g", "flux_r", "flux_i")
    assert product.inputs.cutout == 0
    out = product.compute(batch(flux[:100]))
    assert list(out) == [column.name for column in product.columns]
    assert list(out)[-1] == "photoz_flag"
    for column in product.columns:
        assert out[column.name].dtype == column.dtype
        assert out[column.name].shape == ((100, column.length) if column.length else (100,))
    assert (out["photoz_flag"] == 0).all()
    for name in FLOATS:
        assert np.isfinite(out[name]).all()
        assert out[name].min() >= -1
        assert out[name].max() <= 20


def test_results_do_not_depend_on_the_callers_chunks(package, flux):
    product = PhotozProduct(package)
    whole = product.compute(batch(flux))
    for size in (1, 777, 4096, 5000):
        stop = min(20 * size, len(flux))
        parts = [product.compute(batch(flux[k : k + size])) for k in range(0, stop, size)]
        for name in whole:
            found = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(found, whole[name][: len(found)], err_msg=name)


def test_every_flag(package, flux):
    rows = flux[:6].copy()
    rows[0, 1] = np.nan
    rows[1] = np.nan
    rows[2, 0] = np.inf
    rows[3, 0] = 1e12
    rows[4] = [np.inf, np.nan, np.nan, np.nan]
    product = PhotozProduct(package)
    out = product.compute(batch(rows))
    expected = [
        ("missing_band",),
        ("missing_band", "no_image"),
        ("missing_band", "non_finite_input"),
        ("outside_training_range",),
        ("missing_band", "no_image", "non_finite_input"),
        (),
    ]
    assert out["photoz_flag"].tolist() == [schemas.flag(*names) for names in expected]
    for name in FLOATS:
        finite = np.isfinite(out[name]).reshape(6, -1).all(axis=1)
        assert finite.tolist() == [True, False, True, True, False, True]
        assert np.isnan(out[name][1]).all()


def test_flags_of_the_batch_are_kept(package, flux):
    given = np.array([0, schemas.flag("edge"), schemas.flag("duplicate_id")], np.int32)
    out = PhotozProduct(package).compute(batch(flux[:3], flags=given))
    np.testing.assert_array_equal(out["photoz_flag"], given)
    assert given.tolist() == [0, 2, 128]


def test_network_that_fails_is_flagged(package, flux):
    product = PhotozProduct(package)
    with torch.no_grad():
        product._network.head.bias[0] = torch.nan
    out = product.compute(batch(flux[:2]))
    assert out["photoz_flag"].tolist() == [schemas.flag("model_failure")] * 2
    assert np.isnan(out["gaznet_c4_z_median"]).all()


def test_band_map_reads_the_surveys_columns(package, flux):
    plain, mapped = PhotozProduct(package), PhotozProduct(package, {"i": "i2"})
    assert mapped.inputs.columns[-1] == "flux_i2"
    first = plain.compute(batch(flux[:10]))
    second = mapped.compute(batch(flux[:10], names=("u", "g", "r", "i2")))
    np.testing.assert_array_equal(first["gaznet_c4_z_mean"], second["gaznet_c4_z_mean"])
    assert plain.version != mapped.version
    assert plain.version == PhotozProduct(package, {"u": "u"}).version


def test_fluxes_of_another_product_are_read_where_it_has_all(package, flux):
    product = PhotozProduct(package, fluxes="deblend")
    names = [f"flux_{band}" for band in BANDS]
    assert product.inputs.columns == (*names, *(f"deblend_{name}" for name in names))
    own = flux[:4] * np.array([0.5, 0.7, 0.6, 0.9])
    own[1] = np.nan
    own[2, 3] = np.nan
    given = batch(flux[:4])
    columns = given.columns | {
        f"deblend_{name}": own[:, k].astype(np.float32) for k, name in enumerate(names)
    }
    found = product.compute(Batch(columns, given.flags))
    mixed = np.where([[True], [False], [False], [True]], own, flux[:4])
    expected = PhotozProduct(package).compute(batch(mixed))
    for name in FLOATS:
        np.testing.assert_array_equal(found[name], expected[name])
    assert product.version != PhotozProduct(package).version


def test_wrong_band_maps_are_named(package):
    with pytest.raises(ConfigError, match=r"'K': the model has u, g, r, i; the survey Ks"):
        PhotozProduct(package, {"K": "Ks"})
    with pytest.raises(ConfigError, match="same survey band"):
        PhotozProduct(package, {"u": "g"})


def test_a_survey_that_lacks_a_band_is_refused_or_masked_as_the_model_declares(package, flux):
    with pytest.raises(
        ConfigError, match=r"no band 'i'.*the model has u, g, r, i; the survey u, g, r;"
    ):
        PhotozProduct(package, survey_bands=("u", "g", "r"))
    document = {**package.document, "absent_bands": "mask"}
    willing = Package(package.name, package.version, document, package.weights)
    with pytest.raises(
        ConfigError, match=r"no band 'i'.*does not know: the model has u, g, r, i; .* r, u, g, y;"
    ):
        PhotozProduct(willing, survey_bands=("r", "u", "g", "y"))
    assert PhotozProduct(willing, survey_bands=("r", "u", "g")).absent == ("i",)
    product = PhotozProduct(willing, {"i": ""}, survey_bands=("r", "u", "g", "y"))
    assert product.inputs.columns == ("flux_u", "flux_g", "flux_r")
    assert product.version != PhotozProduct(willing, survey_bands=BANDS).version
    found = product.compute(batch(flux[:20, :3], names=("u", "g", "r")))
    gone = flux[:20].copy()
    gone[:, 3] = np.nan
    expected = PhotozProduct(package).compute(batch(gone))
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
    assert (found["photoz_flag"] & schemas.flag("missing_band")).all()
    with pytest.raises(ConfigError, match="the survey y"):
        PhotozProduct(willing, survey_bands=("y",))


def package_of_images(folder):
    torch.manual_seed(0)
    settings = {"image_widths": [4, 4, 4, 4], "joint_widths": [8], "cutout": 16}
    network = build("gaznet-i3", ("u", "g", "r"), settings)
    return save_package(
        Store(str(folder)),
        "gaznet-i3",
        architecture="gaznet-i3",
        settings=settings,
        bands=("u", "g", "r"),
        scaling=None,
        members=[network.state_dict()],
        pixel_scale=0.2,
        absent_bands="mask",
    )


def test_planes_of_a_band_that_the_survey_lacks_are_missing_ones(tmp_path):
    package = package_of_images(tmp_path)
    pixels = np.random.default_rng(1).normal(0, 30, (5, 3, 16, 16)).astype(np.float32)
    flags = np.zeros(5, np.int32)
    scale = np.full(5, 0.2)
    product = PhotozProduct(package, survey_bands=("r", "u"))
    assert product.inputs.bands == ("u", "r")
    found = product.compute(Batch({}, flags, images=pixels[:, [0, 2]], pixel_scale=scale))
    pixels[:, 1] = np.nan
    expected = PhotozProduct(package).compute(Batch({}, flags, images=pixels, pixel_scale=scale))
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
    assert np.isfinite(found["gaznet_i3_z_median"]).all()


@pytest.fixture
def told_devices(monkeypatch):
    """The devices that networks were asked to work on; all work is done by the CPU."""
    told = []

    def watched(*args, device, **kwargs):
        told.append(device)
        return predict(*args, **kwargs)

    monkeypatch.setattr(inference, "predict", watched)
    yield told
    use_device("cpu")


def test_networks_of_images_ask_for_a_device_and_those_of_fluxes_do_not(
    package, flux, told_devices, tmp_path
):
    images = PhotozProduct(package_of_images(tmp_path))
    assert wants_device(images)
    assert not wants_device(PhotozProduct(package))
    pixels = np.ones((2, 3, 16, 16), np.float32)
    use_device("cuda")
    PhotozProduct(package).compute(batch(flux[:2]))
    images.compute(Batch({}, np.zeros(2, np.int32), images=pixels))
    assert told_devices == ["cpu", "cuda"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_what_a_cpu_gives_and_always_the_same(tmp_path):
    package = package_of_images(tmp_path)
    pixels = np.random.default_rng(1).normal(0, 30, (300, 3, 16, 16)).astype(np.float32)
    objects = Batch({}, np.zeros(300, np.int32), images=pixels, pixel_scale=np.full(300, 0.2))
    expected = PhotozProduct(package).compute(objects)
    try:
        use_device("cuda")
        first, second = (PhotozProduct(package).compute(objects) for _ in range(2))
    finally:
        use_device("cpu")
    for key, values in expected.items():
        np.testing.assert_array_equal(first[key], second[key])
        np.testing.assert_allclose(first[key], values, rtol=1e-3, atol=1e-3)


def test_empty_batch_and_a_copy_in_another_process(package, flux):
    product = PhotozProduct(package)
    empty = product.compute(batch(flux[:0]))
    assert empty["gaznet_c4_z_quantiles"].shape == (0, 21)
    again = pickle.loads(pickle.dumps(product))
    np.testing.assert_array_equal(
        again.compute(batch(flux[:5]))["gaznet_c4_z_mode"],
        product.compute(batch(flux[:5]))["gaznet_c4_z_mode"],
    )


def test_column_prefix_is_a_safe_name():
    assert column_prefix("gaznet-c7.v2") == "gaznet_c7_v2"
    assert column_prefix("7bands") == "model_7bands"
