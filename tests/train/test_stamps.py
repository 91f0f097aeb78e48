"""Folders of stamps: what is read, what is refused, and a model from folder to folder."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import where
from astropy.io import fits
from PIL import Image

from surveyproc import verbs
from surveyproc.config import SurveyConfig
from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.stamp_kind import StampKind
from surveyproc.images.stamps import DamagedStampError, decode_stamp, read_stamp
from surveyproc.models.base import Reads
from surveyproc.models.package import load_package
from surveyproc.models.stamps import predict_stamps, stamp_kind
from surveyproc.products.morphology import MorphologyProduct
from surveyproc.products.photoz import PhotozProduct
from surveyproc.store.storage import Store
from surveyproc.survey import Survey
from surveyproc.train.loop import train
from surveyproc.train.stamps import from_arrays, read_stamps

SIDE = 40
READS = Reads(images=("r", "g", "b"), cutout=32)


def galaxy(kind, seed, side=SIDE):
    """A disc on edge or a round one, in colour, with noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    angle = random.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    shape = np.exp(-((u / 6) ** 2) - (v / (1.2 if kind == "edge" else 6)) ** 2)
    planes = shape[..., None] * [200, 150, 100] + random.normal(12, 4, (side, side, 3))
    return np.clip(planes, 0, 255).astype(np.uint8)


def save(folder, n=24, side=SIDE):
    """So many stamps of two kinds, sorted by kind, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,kind,smooth,disk"]
    for number in range(n):
        kind = "edge" if number < n // 2 else "round"
        Image.fromarray(galaxy(kind, number, side)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{kind},{0.2 if kind == 'edge' else 0.9},0.5")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def section(**keys):
    given = {"source": "labels.csv", "images": ".", "targets": {"class": ["kind"]}, "shift": 2}
    return TrainingSection(**given | keys)


def read(folder, **keys):
    store = Store(str(folder.parent / "store"))
    given = section(**keys)
    return read_stamps(
        store, "morphology", given, READS, folder=str(folder), table=str(folder / "labels.csv")
    )


def png16(path):
    """A PNG of 16 bits a plane, which Pillow reads but does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + bytes(SIDE * 6) for _ in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_stamps_are_a_training_cube_of_their_centres(tmp_path):
    folder = save(tmp_path / "stamps")
    found = read(folder)
    assert len(found) == 24
    assert found.bands == ("r", "g", "b")
    assert found.cube.cutout == 36
    files = found.cube.index["file"].to_pylist()
    # Sorted by kind in the table, mixed in the cube.
    assert len(set(found.targets["class"][:8])) == 2
    for number in (0, 7, 23):
        whole = np.asarray(Image.open(folder / files[number])).transpose(2, 0, 1)
        assert (found.cube.read(0)[number] == whole[:, 2:38, 2:38]).all()
        assert (found.targets["class"][number] == "edge") == (int(files[number][:-4]) < 12)
    assert found.split(0, 0.25).sum() == 6
    assert np.bincount(found.folds(0, 4)).tolist() == [6, 6, 6, 6]
    assert found.usable(np.ones(24, bool), "class").dropped == {}
    assert read(folder).cube.key == found.cube.key
    # Other pixels in a file of the same name and size are another cube.
    bits = bytearray((folder / "3.png").read_bytes())
    Image.fromarray(galaxy("round", 99)).save(folder / "3.png")
    assert read(folder).cube.key != found.cube.key
    (folder / "3.png").write_bytes(bits)
    assert read(folder).cube.key == found.cube.key


def test_names_may_lack_their_ending_and_be_ids(tmp_path):
    folder = save(tmp_path / "stamps", 4)
    big = 588848901537202306
    lines = ["OBJID,kind"]
    for number in range(4):
        (folder / f"{number}.png").rename(folder / f"{big + number}.png")
        lines.append(f"{big + number},{'edge' if number < 2 else 'round'}")
    (folder / "labels.csv").write_text("\n".join(lines))
    found = read(folder, file="OBJID")
    assert sorted(found.cube.index["file"].to_pylist()) == [f"{big + k}.png" for k in range(4)]
    with pytest.raises(InputError, match=r"no column 'file'"):
        read(folder)


def test_damaged_and_missing_files_are_left_out_and_named(tmp_path):
    folder = save(tmp_path / "stamps", 12)
    jpeg = folder / "3.png"
    Image.fromarray(galaxy("edge", 3)).save(jpeg, format="JPEG")
    jpeg.write_bytes(jpeg.read_bytes()[:300])
    (folder / "5.png").write_bytes(b"not an image")
    (folder / "8.png").unlink()
    lines = (folder / "labels.csv").read_text().replace("9.png,round", "9.png,")
    (folder / "labels.csv").write_text(lines)
    found = read(folder)
    assert len(found) == 8
    damaged = [why for why in found.dropped if why.startswith("damaged image: ")]
    assert found.dropped == {
        "no label or no file name": 1,
        "no such image: 8.png": 1,
        damaged[0]: 2,
    }
    assert {"3.png", "5.png"} == set(damaged[0].removeprefix("damaged image: ").split(", "))
    for number in range(12):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match="all 11 images are damaged"):
        read(folder)
    for number in range(12):
        (folder / f"{number}.png").unlink()
    with pytest.raises(InputError, match="no row has a label and an image in"):
        read(folder)


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("L", "mode L (grey)"),
        ("RGBA", "mode RGBA (with an alpha channel)"),
        ("LA", "grey with an alpha channel"),
        ("P", "a palette"),
        ("I;16", "16 bits a plane"),
    ],
)
def test_images_of_another_kind_are_refused_by_name(tmp_path, mode, told):
    folder = save(tmp_path / "stamps", 4)
    image = Image.fromarray(galaxy("edge", 1))
    if mode == "I;16":
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(folder / "2.png")
    else:
        image.convert(mode).save(folder / "2.png")
    with pytest.raises(InputError) as raised:
        read(folder)
    assert str(raised.value).startswith("2.png: ")
    assert told in str(raised.value)


def test_sixteen_bits_in_colour_are_refused_too(tmp_path):
    png16(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert image.mode == "RGB"
    with pytest.raises(InputError, match=r"deep\.png: a PNG of 16 bits a plane"):
        decode_stamp((tmp_path / "deep.png").read_bytes(), "deep.png")


def test_other_sizes_are_refused_or_resampled(tmp_path):
    folder = save(tmp_path / "stamps", 6)
    for number in range(6):
        Image.fromarray(galaxy("edge", number, 80 if number == 4 else SIDE)).save(
            folder / f"{number}.png"
        )
    with pytest.raises(InputError, match=r"\.png has .* pixels, and \d\.png .*training\.resize"):
        read(folder)
    found = read(folder, resize=40)
    assert len(found) == 6
    assert np.ptp(found.cube.read(0)) > 100
    with pytest.raises(InputError, match="38 pixels on a side, and 40 are wanted"):
        read(folder, resize=38, shift=4)
    Image.fromarray(galaxy("edge", 1)[:30]).save(folder / "1.png")
    with pytest.raises(InputError, match=r"1\.png: stamps are square, and this one has 40 x 30"):
        read(folder, resize=40)


def test_fluxes_and_colours_are_not_mixed(tmp_path):
    folder = save(tmp_path / "stamps", 4)
    cube = np.ones((3, SIDE, SIDE), np.float32)
    fits.PrimaryHDU(cube).writeto(folder / "2.fits")
    table = (folder / "labels.csv").read_text().replace("2.png", "2.fits")
    (folder / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=r"is (fluxes|a colour image).* and \d\.(png|fits) (a|f)"):
        read(folder)


def test_endings_are_those_of_the_files(tmp_path):
    """In capitals too; FITS is what ends so, and a name of two files is refused."""
    folder = save(tmp_path / "stamps", 4)
    (folder / "2.png").rename(folder / "2.PNG")
    (folder / "3.png").rename(folder / "3.fitted.png")
    table = (folder / "labels.csv").read_text()
    table = table.replace("3.png", "3.fitted").replace(".png", "")
    (folder / "labels.csv").write_text(table)
    files = read(folder).cube.index["file"].to_pylist()
    assert sorted(files) == ["0.png", "1.png", "2.PNG", "3.fitted.png"]
    (folder / "1.fits").write_bytes(b"")
    with pytest.raises(InputError, match=r"'1' may be 1\.fits or 1\.png: give its ending too"):
        read(folder)


def test_a_file_named_twice_is_refused(tmp_path):
    folder = save(tmp_path / "stamps", 4)
    with (folder / "labels.csv").open("a") as file:
        file.write("2.png,edge,0.2,0.5\n")
    with pytest.raises(InputError, match=r"training\.file|names '2\.png' twice"):
        read(folder)


def test_fits_stamps_are_fluxes_of_any_bands(tmp_path):
    folder = save(tmp_path / "stamps", 4)
    cubes = {}
    for number in range(4):
        cubes[number] = np.random.default_rng(number).normal(size=(2, SIDE, SIDE))
        cubes[number][0, 0, 0] = np.nan
        hdu = fits.PrimaryHDU(cubes[number].astype(np.float32))
        hdu.header["BUNIT"] = "uJy"
        hdu.writeto(folder / f"{number}.fits")
    table = (folder / "labels.csv").read_text().replace(".png", ".fits")
    (folder / "labels.csv").write_text(table)
    reads = Reads(images=("r", "i"), cutout=SIDE)
    args = {"folder": str(folder), "table": str(folder / "labels.csv")}
    store = Store(str(tmp_path / "store"))
    found = read_stamps(store, "m", section(shift=0), reads, **args)
    number = int(found.cube.index["file"][0].as_py()[0])
    np.testing.assert_allclose(
        found.cube.read(0)[0], 1000 * cubes[number].astype(np.float32), rtol=1e-6
    )
    with pytest.raises(InputError, match="has 2 bands, and the network reads r, g, b"):
        read(folder)
    data = (folder / "1.fits").read_bytes()
    with pytest.raises(DamagedStampError, match=r"1\.fits"):
        decode_stamp(data[: len(data) // 2], "1.fits")
    bad = fits.PrimaryHDU(np.zeros((4, 4), np.float32))
    bad.header["BUNIT"] = "adu"
    bad.writeto(folder / "bad.fits")
    with pytest.raises(InputError, match=r"bad\.fits: BUNIT 'adu' is no flux density"):
        decode_stamp((folder / "bad.fits").read_bytes(), "bad.fits")


def toml(folder: Path, more: str = "", model: str = "looks", settings: str = "") -> SurveyConfig:
    catalog = folder.parent / "catalog.csv"
    catalog.write_text("object_id,ra,dec\n1,10.0,10.0\n")
    text = f"""
    [survey]
    name = "stamps"
    root = "{folder.parent / "root"}"
    [images]
    bands = ["r", "g", "b"]
    [catalog]
    source = "catalog.csv"
    [[products]]
    name = "morphology"
    model = "{model}"
    architecture = "morphology"
    architecture_settings = {{ cutout = 32, pixels = "eight_bit", hidden = 16 {settings} }}
    [products.training]
    source = "{folder / "labels.csv"}"
    images = "{folder}"
    epochs = 2
    batch_size = 8
    {more}
    """
    path = folder.parent / "survey.toml"
    path.write_text(text)
    from surveyproc.config import load

    return load(path)


def test_learning_without_labels_and_a_training_that_begins_with_it(tmp_path):
    folder = save(tmp_path / "stamps", 40)
    toml(folder, model="alike")
    text = (tmp_path / "survey.toml").read_text()
    (tmp_path / "survey.toml").write_text(
        text.replace('architecture = "morphology"', 'architecture = "contrastive"')
    )
    from surveyproc.config import load

    done = verbs.train(Survey(load(tmp_path / "survey.toml")))["morphology"]
    assert done.metrics["held_out"] == {}
    alike = load_package(Store(str(tmp_path / "root")), "alike")
    assert alike.document["training"]["rows_known"] == {"likeness": 40}
    losses = [one["validation_loss"] for one in alike.document["training"]["loss_curve"]]
    assert np.isfinite(losses).all()
    assert predict_stamps(alike, str(folder))["embedding"].dtype == np.int16
    verbs.train(Survey(toml(folder, 'targets = { class = "kind" }\nstart = "alike"')))
    made = load_package(Store(str(tmp_path / "root")), "looks")
    assert made.document["training"]["start"] == f"alike@{alike.version}"


def test_from_a_folder_to_a_model_to_another_folder(tmp_path):
    folder = save(tmp_path / "stamps", 40)
    more = (
        'targets = { class = "kind" }\ndimming = [0.6, 1.0]\nshrinking = [0.5, 1.0]\nturning = 90.0'
    )
    config = toml(folder, more)
    done = verbs.train(Survey(config))["morphology"]
    assert done.metrics["held_out"]["class"]["n"] == 6
    package = load_package(Store(config.root), "looks")
    assert package.document["training"]["split"] == "objects"
    fitted = package.document["training"]["recipe"]["fit"]
    assert (fitted["zoom"], fitted["dimming"], fitted["shrinking"]) == (1.2, [0.6, 1], [0.5, 1])
    assert package.network().config.zoom == pytest.approx(1.1)
    assert package.network().config.turned == (22.5, 7.5, 37.5)
    other = save(tmp_path / "others", 6)
    Image.fromarray(galaxy("edge", 1)).convert("L").save(other / "1.png")
    (other / "2.png").write_bytes(b"")
    found = predict_stamps(package, str(other))
    assert found["file"].tolist() == [f"{number}.png" for number in range(6)]
    bad = found["problem"] != ""
    assert bad.tolist() == [False, True, True, False, False, False]
    assert "grey" in found["problem"][1]
    assert np.isfinite(found["p_edge"][~bad]).all()
    assert np.isnan(found["p_edge"][bad]).all()
    assert (found["class"] == "").tolist() == bad.tolist()
    assert found["embedding"].shape == (6, 16)
    # Stamps of another size or kind than those that it learned from.
    Image.fromarray(galaxy("edge", 1, 80)).save(other / "5.png")
    fits.PrimaryHDU(np.ones((3, SIDE, SIDE), np.float32)).writeto(other / "6.fits")
    named = predict_stamps(package, str(other), ["5.png", "6.fits"])["problem"]
    assert "5.png has 80 x 80 pixels, and those that model looks learned from 40 x 40" in named[0]
    assert "6.fits is fluxes (FITS), and those that model looks learned from a col" in named[1]
    assert stamp_kind(package) == StampKind(colour=True, planes=3, side=SIDE)
    for right, wrong in (("3.png", "5.png"), ("3.png", "6.fits")):
        stamp = read_stamp(other / right, READS.images, 32, stamp_kind(package))
        assert stamp.shape == (3, 32, 32)
        with pytest.raises(InputError, match="those that the model learned from"):
            read_stamp(other / wrong, READS.images, 32, stamp_kind(package))
    named = predict_stamps(package, str(other), ["3.png", "none.png"])
    np.testing.assert_array_equal(named["p_edge"][0], found["p_edge"][3])
    assert "no such file" in named["problem"][1]
    with pytest.raises(InputError, match="no JPEG, PNG or FITS file"):
        predict_stamps(package, str(tmp_path / "empty"))
    # A survey's cutouts are fluxes, and no colours.
    with pytest.raises(
        ConfigError, match=r"products\.morphology: model 'looks' learned from colour"
    ):
        MorphologyProduct.build(config.product("morphology"), Survey(config))
    product = MorphologyProduct(package)
    assert [one.name for one in product.columns] == [
        "looks_p_edge",
        "looks_p_round",
        "looks_class",
        "looks_embedding",
        "morphology_flag",
    ]
    with pytest.raises(ConfigError, match="gives no redshift"):
        PhotozProduct(package)


@pytest.mark.parametrize(
    ("more", "settings", "error", "match"),
    [
        ('targets = { class = "kind" }\nid = "file"', "", ConfigError, "neither magnitudes nor id"),
        ('targets = { class = "kind" }\nfile = "name"', "", InputError, r"no column 'name' .*file"),
        ('targets = { class = "kind" }\nbands = ["i", "r"]', "", InputError, "set training.bands"),
        (
            'targets = { votes = ["smooth", "disk"] }',
            ', decides = "votes", answers = ["smooth", "disk"], questions = { t = ["smooth"] }',
            ConfigError,
            "answer 'disk' must be one",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path, more, settings, error, match):
    folder = save(tmp_path / "stamps", 12)
    with pytest.raises(error, match=match):
        verbs.train(Survey(toml(folder, more, settings=settings)))


def labelled(tmp_path, labels, **keys):
    images = np.random.default_rng(0).uniform(0, 255, (len(labels), 3, 32, 32)).astype(np.float32)
    store = Store(str(tmp_path / "store"))
    data = from_arrays(store, "m", images, {"class": np.array(labels, object)}, ("r", "g", "b"))
    given = {"source": "x", "epochs": 1, "batch_size": 4, "shift": 0, "targets": {"class": ["c"]}}
    classes = {"classes": {"class": keys.pop("classes")}} if "classes" in keys else {}
    return train(
        data,
        settings=TrainingSection(**given | keys),
        store=store,
        name="m",
        architecture="morphology",
        network={"cutout": 32, "pixels": "eight_bit", "hidden": 8, **classes},
        places=where.HERE,
        say=lambda line: None,
    )


def test_classes_without_an_example_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no object of class 'c' is left .*\(12 a, 8 b, 0 c\)"):
        labelled(tmp_path, ["a", "b"] * 8 + ["a"] * 4, classes=("a", "b", "c"), held_out_share=0)
    with pytest.raises(InputError, match=r"one object of class 'z' is left .* 2 are the least"):
        labelled(tmp_path, ["a", "b"] * 8 + ["z"], held_out_share=0)
    # The one example of a class is held out in one of the folds.
    with pytest.raises(InputError, match=r"network \d of 2: task 'class': no object of class 'z'"):
        labelled(tmp_path, ["a", "b"] * 8 + ["z"], folds=2)


def test_a_held_out_part_without_a_class_is_measured_without_it(tmp_path):
    package = labelled(tmp_path, ["a"] * 17 + ["z"] * 2, folds=1, held_out_share=0.2, seed=1)
    found = package.metrics["held_out"]["class"]
    assert found["completeness"]["z"] is None
    assert found["n"] == 4
