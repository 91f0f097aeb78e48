"""A product of another package: columns, a table with several rows an object, a mask."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from own_package import call, command, install
from sums import sums

from surveyproc.catalogs import hats
from surveyproc.testing import check_product

SECTION = '\n[[products]]\nname = "peaks"\nband = "r"\n'


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with the package as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    return install("own_product", folder, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def survey(installed, published_survey, tmp_path_factory):
    """A published survey, to which the product was added; published again."""
    folder = tmp_path_factory.mktemp("peaks") / "survey"
    shutil.copytree(published_survey.parent, folder)
    path = folder / "survey.toml"
    path.write_text(path.read_text() + SECTION)
    done = call(installed, "run", path)
    return path, done


def test_it_is_listed_with_what_it_reads_and_writes(installed):
    line, environment = command(installed, "products")
    told = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    assert "peaks (surveyproc-peaks)\n  reads: cutouts of one band\n  writes: peaks_n" in told


def test_columns_rows_and_pixels_say_the_same(installed, survey):
    path, done = survey
    assert done["by_product"]["photometry"]["computed"] == 0
    release = Path(done["url"])
    assert call(installed, "validate", path)["problems"] == []
    leaves = sorted((release / "dataset").rglob("Npix=*.parquet"))
    group = zarr.open_group(release / "pixels" / "peaks_mask", mode="r")
    rows = 0
    for leaf in leaves:
        key = leaf.relative_to(release)
        order, pixel = hats.pixel_of(str(key))
        objects = pq.read_table(leaf)
        mask = group[f"Norder={order}-Npix={pixel}"]
        assert mask.shape == (objects.num_rows, 24, 24)
        counts = objects["peaks_n"].to_numpy()
        assert ((counts > 0) == np.asarray(mask).any(axis=(1, 2))).all()
        peaks = pq.read_table(f"{release}-peaks/{key}")
        found = dict(zip(*np.unique(peaks["object_id"], return_counts=True), strict=True))
        expected = {
            one: count
            for one, count in zip(objects["object_id"].to_pylist(), counts, strict=True)
            if count
        }
        assert found == expected
        assert (np.diff(peaks[hats.SPATIAL].to_numpy()) >= 0).all()
        rows += peaks.num_rows
    assert done["tables"] == {"peaks": rows}
    assert rows > done["rows"]


def test_rolled_back_adopted_and_lost(installed, survey, tmp_path):
    path = tmp_path / "survey" / "survey.toml"
    shutil.copytree(survey[0].parent, path.parent)
    release = survey[1]["release"]
    folder = path.parent / "store" / "releases" / "simulated" / release
    # Of a new model everything else is carried over, files beside the leaves too.
    other = call(installed, "run", path, "--set", "gates.max_null_share=0.9",
                 "--set", "products.photometry.aperture=1.7")  # fmt: skip
    assert other["by_product"]["peaks"] == {"computed": 0, "carried": other["units"], "kept": 0}
    second = path.parent / "store" / "releases" / "simulated" / other["release"]
    assert sums(second / "pixels") == sums(folder / "pixels")
    assert call(installed, "validate", path)["problems"] == []
    told = call(installed, "releases", path, "--diff", release, other["release"])
    assert told["tables"]["peaks"] == {"rows": [survey[1]["tables"]["peaks"]] * 2, "changed": 0}
    # What is beside a release is no release: a night cleans up and lists without tripping over it.
    assert call(installed, "clean", path)["removed"] == {}
    names = [one["release"] for one in call(installed, "releases", path)["releases"]]
    assert set(names) >= {release, other["release"]}
    assert not any("peaks" in name for name in names)
    # A file that is gone is seen by validate, keeps a rollback from it, and the next run mends it.
    lost = next((folder / "pixels").rglob("c/0/*/*"))
    kept = lost.read_bytes()
    lost.unlink()
    line, environment = command(installed, "releases", path, "--rollback", release)
    refused = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "is missing" in refused.stderr
    call(installed, "run", path)
    assert lost.read_bytes() == kept
    assert call(installed, "validate", path)["problems"] == []


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_ends_in_the_same_bytes(installed, survey, tmp_path, seed):
    path = tmp_path / "survey" / "survey.toml"
    shutil.copytree(survey[0].parent, path.parent)
    shutil.rmtree(path.parent / "store" / "releases")
    shutil.rmtree(path.parent / "store" / "runs")
    rng, kills = random.Random(seed), 0
    for _ in range(20):
        line, environment = command(installed, "run", path)
        started = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, stdout=-3)
        try:
            started.wait(rng.uniform(1.5, 5.0) if kills < 3 else None)
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGKILL)
            started.wait()
            kills += 1
            time.sleep(0.05)
            continue
        if started.returncode == 0:
            break
    assert started.returncode == 0
    wanted = survey[1]["release"]
    folders = [one / "store" / "releases" / "simulated" / wanted
               for one in (survey[0].parent, path.parent)]  # fmt: skip

    def files(name: str) -> bool:
        return not name.endswith("properties")

    assert sums(folders[1], files) == sums(folders[0], files)


def test_it_keeps_the_contract_of_products(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    from surveyproc_peaks import Peaks

    from surveyproc.products.base import Batch

    rng = np.random.default_rng(1)
    images = rng.normal(size=(6, 1, 24, 24)).astype(np.float32)
    images[:, 0, 12, 12] += 50
    batch = Batch(columns={}, flags=np.zeros(6, np.int32), images=images)
    check_product(Peaks("peaks", "r", 24, 5.0), batch)


def test_rows_and_pixels_that_depend_on_the_batch_are_seen(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    from surveyproc_peaks import Peaks

    from surveyproc.products.base import Batch

    class Numbers(Peaks):
        """Its mask holds the place in the batch."""

        def compute(self, batch):
            found = super().compute(batch)
            found["peaks_mask"][:] = np.arange(len(batch.flags), dtype=np.uint8)[:, None, None]
            return found

    images = np.zeros((3, 1, 24, 24), np.float32)
    batch = Batch(columns={}, flags=np.zeros(3, np.int32), images=images)
    with pytest.raises(AssertionError, match="peaks_mask: other batches gave another result"):
        check_product(Numbers("peaks", "r", 24, 5.0), batch)
