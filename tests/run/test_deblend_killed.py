"""A run with masks and a table of its own, killed at random moments: all of it exactly once."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from sums import sums

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.models.base import build
from surveyproc.models.package import save_package
from surveyproc.simulate import simulate
from surveyproc.simulate.population import Pairs
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

pytestmark = [pytest.mark.kill, pytest.mark.slow, pytest.mark.timeout(600)]

OBJECTS, SIDE, KILLS = 600, 32, 6
BANDS = ("g", "r")
SETTINGS = {"cutout": SIDE, "width": 2, "dense": [4], "filters": 4, "depth": 3}
PRODUCT = """
[[products]]
name = "deblend"
model = "parts"
radius = 2.1
masks = true

[truth]
"""


def untrained(store: Store) -> None:
    """A network of blends with its first weights: what it says does not matter here."""
    torch.manual_seed(3)
    random_ = np.random.default_rng(0)
    network = build("blend2mask2flux", BANDS, SETTINGS)
    network.set_images(
        iter([torch.from_numpy(random_.normal(0, 1e3, (20, 2, SIDE, SIDE))).float()])
    )
    network.set_targets({"fluxes": torch.full((20, 4), 2000.0, dtype=torch.float64)})
    save_package(
        store, "parts", architecture="blend2mask2flux", settings=SETTINGS, bands=BANDS,
        scaling=None, members=[network.state_dict()], pixel_scale=0.25,
    )  # fmt: skip


def made(folder: Path) -> Path:
    """survey.toml of a crowded survey that is ingested."""
    path = simulate(
        folder, objects=OBJECTS, seed=5, workers=1, bands=BANDS, pairs=Pairs(0.3, 0.5)
    ).config
    text = path.read_text()
    start = text.index('[[products]]\nname = "photoz"')
    text = text[:start] + PRODUCT + text[text.index("[truth]") + len("[truth]") :]
    path.write_text(text.replace(f"partition_rows = {OBJECTS // 6}", "partition_rows = 25"))
    survey = Survey(load(path))
    untrained(survey.store)
    verbs.ingest(survey)
    return path


def command(path: Path) -> list[str]:
    settings = ("--set", "run.place=here", "--set", "run.workers=2")
    return [sys.executable, "-m", "surveyproc", "run", str(path), *settings]


def killed(path: Path, rng: random.Random) -> int:
    """Kill the command somewhere in one of the next units; how many were committed then, or -1."""

    def commits() -> int:
        return len([*(path.parent / "store/runs").glob("r*/commits/*.json")])

    driver = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    goal, begun = commits() + rng.randrange(4), path.parent / "store/runs"
    while driver.poll() is None and not (commits() >= goal and any(begun.glob("r*/begun/*"))):
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.15))
    driver.send_signal(signal.SIGKILL)
    return commits() if driver.wait() == -signal.SIGKILL else -1


@pytest.mark.parametrize("seed", range(3))
def test_every_row_and_every_mask_is_there_once(tmp_path, seed):
    path = made(tmp_path / "survey")
    rng = random.Random(seed)
    after = [killed(path, rng) for _ in range(KILLS)]
    print(f"killed with so many units committed: {after}")
    assert sum(count >= 0 for count in after) >= KILLS // 2, after
    subprocess.run(command(path), check=True, capture_output=True)
    survey = Survey(load(path))
    assert verbs.validate(survey).problems == []
    release = Path(verbs.releases(survey).current.url)
    found = sums(release.parent, is_same)
    once(release)
    # The same survey without a kill.
    for part in ("runs", "releases"):
        (path.parent / "store" / part).rename(path.parent / f"killed-{part}")
    subprocess.run(command(path), check=True, capture_output=True)
    whole = sums(release.parent, is_same)
    assert found == whole
    assert sum("deblend_galaxies" in name for name in whole) > 20
    assert sum("deblend_masks" in name for name in whole) > 20


def is_same(name: str) -> bool:
    """Whether a file of the releases holds no date of its making."""
    return not name.endswith(("properties", "current.json"))


def once(release: Path) -> None:
    """Every galaxy has its row, and every object its masks, and none has two."""
    leaves = sorted(release.glob("dataset/**/Npix=*.parquet"))
    rows = pa.concat_tables([pq.read_table(leaf) for leaf in leaves])
    assert sorted(rows["object_id"].to_pylist()) == list(range(1, OBJECTS + 1))
    known = np.isfinite(rows["deblend_flux_r"].to_numpy())
    assert known.sum() > 0.5 * OBJECTS
    beside = release.with_name(f"{release.name}-deblend_galaxies")
    galaxies = pa.concat_tables(
        [pq.read_table(leaf) for leaf in sorted(beside.glob("dataset/**/Npix=*.parquet"))]
    )
    told = sorted(
        zip(galaxies["object_id"].to_pylist(), galaxies["galaxy"].to_pylist(), strict=True)
    )
    wanted = rows["object_id"].to_numpy()[known].tolist()
    assert told == sorted((one, number) for one in wanted for number in (0, 1))
    masks = zarr.open_group(str(release / "pixels" / "deblend_masks"), mode="r")
    shapes = [array.shape for _, array in masks.arrays()]
    assert sum(shape[0] for shape in shapes) == OBJECTS
    assert {shape[1:] for shape in shapes} == {(2, SIDE, SIDE)}
