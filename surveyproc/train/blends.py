"""Artificial blends as training cubes, and what a training or a test takes from one.

`blends/train` and `blends/test` under a store's root share no galaxy; nor do the rows of the first
that are held out with the others. The cube's masks are a target `masks`, its fluxes `fluxes`, both
in the order of `evaluate.blends.flux_names`; `class` says which rows are blends, and which are
galaxies alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import surveyproc
from surveyproc.catalogs.labels import TARGET
from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.blends import KINDS, galaxy_names
from surveyproc.progress import Meter
from surveyproc.simulate.blends import PAPER, Blends, Int, Rule, add, choose, left_alone, split
from surveyproc.simulate.parents import Parents
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.train import cube as cubes
from surveyproc.train.cube import SHARD, TrainingCube
from surveyproc.train.data import TrainingSet

Float = NDArray[np.float64]
FLUXES, MASKS, CLASS = "fluxes", "masks", "class"
THREADS = 2
"""Shards that are made at once."""


@dataclass(frozen=True)
class BlendCounts:
    """How many blends, and of which galaxies.

    Attributes
    ----------
    train, test : int
        Blends to train with, those that are held out among them, and of the test.
    held_out_share, test_share : float
        Share of the blends of `train` that are held out; and of the galaxies. Share of the
        galaxies of which the test is made.

    Raises
    ------
    ConfigError
        If a share leaves nothing.
    """

    train: int = 25_000
    test: int = 5_000
    held_out_share: float = 0.2
    test_share: float = 0.2

    def __post_init__(self) -> None:
        if not (self.held_out_share > 0 and self.test_share > 0):
            raise ConfigError("blends: held_out_share and test_share are greater than 0")
        if self.held_out_share + self.test_share >= 1 or min(self.train, self.test) < 1:
            raise ConfigError(
                f"blends: {self} leaves no galaxies or no blends to train with or to test"
            )


def write_blends(
    store: Store,
    parents: Parents,
    counts: BlendCounts | None = None,
    *,
    rule: Rule = PAPER,
    galaxies: int = 2,
    isolated: float = 0.0,
    noise: Float | None = None,
    pixel_scale: float | None = None,
    seed: int = 0,
) -> tuple[TrainingCube, TrainingCube]:
    """Write the blends to train with, and those of the test.

    Parameters
    ----------
    store : Store
        Root under which `blends/` comes to lie; one that is there is replaced.
    parents : Parents
        The galaxies. They are split first, so that none is on two sides.
    counts : BlendCounts, optional
        How many.
    rule : Rule
        Which galaxies, and how far apart.
    galaxies : int
        In every blend.
    isolated : float
        Share of the rows that are galaxies alone, for networks that tell blends from them.
    noise : float64 ndarray, shape (m, band), optional
        Levels of noise to add, nJy a pixel (standard deviation), of which every blend draws one.
        None for stamps of real galaxies, which bring their own.
    pixel_scale : float, optional
        Arcsec a pixel.
    seed : int
        The same seed gives the same blends.

    Returns
    -------
    train, test : TrainingCube

    Raises
    ------
    InputError
        If the rule lets no galaxies of a part blend.
    """
    counts = counts or BlendCounts()
    if not 0 <= isolated < 1:
        raise ConfigError(
            f"blends: a share of {isolated:g} isolated galaxies is not at least 0 and below 1"
        )
    shares = (counts.test_share, counts.held_out_share * (1 - counts.test_share))
    test, held, rest = split(len(parents), shares, seed)
    held_blends = round(counts.held_out_share * counts.train)
    parts = {
        "train": [(rest, counts.train - held_blends, False), (held, held_blends, True)],
        "test": [(test, counts.test, False)],
    }
    found = []
    for number, (part, pools) in enumerate(parts.items()):
        rng = np.random.default_rng([seed, number])
        chosen = [
            choose(parents, pool, n, rule, galaxies=galaxies, rng=rng) for pool, n, _ in pools
        ]
        blends = Blends(
            *(
                np.concatenate([getattr(one, key) for one in chosen])
                for key in ("members", "shift", "turn")
            )
        )
        if isolated:
            blends = left_alone(blends, isolated, rng)
        held_out = np.repeat([out for _, _, out in pools], [n for _, n, _ in pools])
        level = None if noise is None else noise[rng.integers(0, len(noise), len(blends))]
        record = {
            "bands": list(parents.bands),
            "cutout": parents.side,
            "pixel_scale": pixel_scale,
            "pixel_targets": {MASKS: galaxies},
            "galaxies": galaxies,
            "isolated": isolated,
            "select": parents.bands[parents.select],
            "rule": asdict(rule),
            "parents": int(sum(len(pool) for pool, _, _ in pools)),
            "parents_dropped": parents.dropped,
            "seed": seed,
            "provenance": {"surveyproc_version": surveyproc.__version__},
        }
        key = layout.blends(part)
        found.append(_write(store, key, parents, blends, level, held_out, (seed, number), record))
    return found[0], found[1]


def _write(
    store: Store,
    key: str,
    parents: Parents,
    blends: Blends,
    noise: Float | None,
    held_out: NDArray[np.bool_],
    seed: tuple[int, int],
    record: Mapping[str, Any],
) -> TrainingCube:
    n = len(blends)
    store.remove(key)
    cubes.write_header(store, key, n, len(parents.bands), parents.side)
    cubes.write_header(store, key, n, blends.members.shape[1], parents.side, MASKS)

    def shard(number: int) -> tuple[int, int]:
        rows = slice(number * SHARD, min((number + 1) * SHARD, n))
        some = Blends(blends.members[rows], blends.shift[rows], blends.turn[rows])
        # Its own numbers: a shard is the same whichever thread makes it, and when.
        rng = np.random.default_rng([*seed, number])
        sigma = None if noise is None else noise[rows]
        images, masks = add(parents, some, sigma=sigma, rng=rng)
        nbytes = cubes.write_shard(store, key, number, images)
        nbytes += cubes.write_shard(store, key, number, masks.astype(np.uint8), MASKS)
        return len(some), nbytes

    shards = range(-(-n // SHARD))
    with (
        Meter("blends", objects=n, units=len(shards), noun="blends") as meter,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for made, nbytes in pool.map(shard, shards):
            meter.advance(objects=made, nbytes=nbytes)
    return cubes.finish(store, key, _index(parents, blends, noise, held_out), record)


def _index(
    parents: Parents, blends: Blends, noise: Float | None, held_out: NDArray[np.bool_]
) -> pa.Table:
    n, galaxies = blends.members.shape
    there = blends.members >= 0
    flux = np.where(there[..., None], parents.flux[blends.members], np.nan).reshape(n, -1)
    kinds = np.where(there[:, 1:].any(axis=1), *KINDS)
    columns: dict[str, Any] = {
        "object_id": np.arange(n),
        "held_out": held_out,
        f"{TARGET}{FLUXES}": pa.FixedSizeListArray.from_arrays(flux.ravel(), flux.shape[1]),
        f"{TARGET}{CLASS}": kinds,
        "psf": parents.psf[blends.members[:, 0]],
        "noise": np.full(n, np.nan) if noise is None else noise[:, parents.select],
    }
    for k, name in enumerate(galaxy_names(galaxies)):
        member, here = blends.members[:, k], there[:, k]
        columns |= {
            f"parent_{name}": np.where(here, member, -1),
            f"kind_{name}": np.where(here, parents.kind[member], ""),
            f"mag_{name}": np.where(here, parents.magnitude[member], np.nan),
            f"radius_{name}": np.where(here, parents.radius[member], np.nan),
            f"dy_{name}": blends.shift[:, k, 0],
            f"dx_{name}": blends.shift[:, k, 1],
        }
    return pa.table(columns)


@dataclass(frozen=True)
class BlendTruth:
    """What is known of n blends of k galaxies, of which some may be left out.

    Attributes
    ----------
    flux : float64 ndarray, shape (n, k, band)
        nJy; NaN, as magnitude and radius, of a galaxy that is left out.
    magnitude, radius : float64 ndarray, shape (n, k)
        AB in the band of the selection; half-light radii, pixels.
    kind : ndarray of str, shape (n, k)
        Morphological types.
    shift : int64 ndarray, shape (n, k, 2)
        From the centre of the stamp (pixel cutout // 2), along y and x, pixels.
    parent : int64 ndarray, shape (n, k)
        Which galaxy it is; -1 if it is left out.
    """

    flux: Float
    magnitude: Float
    radius: Float
    kind: NDArray[Any]
    shift: Int
    parent: Int

    @property
    def nearest(self) -> Int:
        """The galaxies of each blend from the central one outwards, shape (n, k)."""
        away = np.linalg.norm(self.shift[:, 1:], axis=2)
        away[self.parent[:, 1:] < 0] = np.inf
        order = 1 + np.argsort(away, axis=1, kind="stable")
        return np.pad(order, ((0, 0), (1, 0)))

    def nearest_first(self) -> BlendTruth:
        """The same in the order of `nearest`, in which a catalog tells of neighbours."""
        where = np.arange(len(self.flux))[:, None], self.nearest
        return BlendTruth(**{one.name: getattr(self, one.name)[where] for one in fields(self)})

    @property
    def places(self) -> Float:
        """(x, y) of the companions minus the central pixel, shape (n, k - 1, 2); NaN without."""
        there = self.parent[:, 1:, None] >= 0
        return np.where(there, self.shift[:, 1:, ::-1].astype(np.float64), np.nan)

    @property
    def separation(self) -> Float:
        """Distance to the nearest other galaxy of the blend, in its own radii, shape (n, k).

        Infinite where it is alone, NaN where it is left out.
        """
        apart = np.linalg.norm(self.shift[:, :, None] - self.shift[:, None], axis=3)
        apart[:, np.arange(apart.shape[1]), np.arange(apart.shape[1])] = np.inf
        apart.swapaxes(1, 2)[self.parent < 0] = np.inf
        return np.asarray(apart.min(axis=2) / self.radius)

    @property
    def contrast(self) -> Float:
        """Magnitude less that of the brightest other galaxy of the blend, shape (n, k).

        Infinitely small where it is alone.
        """
        k = self.magnitude.shape[1]
        others = np.repeat(np.nan_to_num(self.magnitude, nan=np.inf)[:, None], k, axis=1)
        others[:, np.arange(k), np.arange(k)] = np.inf
        return np.asarray(self.magnitude - others.min(axis=2))


def blend_truth(cube: TrainingCube) -> BlendTruth:
    """The truth of a cube of blends.

    Raises
    ------
    InputError
        If the cube holds none.
    """
    galaxies = _galaxies(cube)
    table = cube.index

    def columns(start: str) -> NDArray[Any]:
        names = galaxy_names(galaxies)
        return np.stack([table[f"{start}_{name}"].to_numpy() for name in names], axis=1)

    flux = np.asarray(table[f"{TARGET}{FLUXES}"].combine_chunks().flatten())
    return BlendTruth(
        # A copy: Arrow's own numbers cannot be written to, which torch warns of.
        flux=flux.reshape(cube.n, galaxies, len(cube.bands)).astype(np.float64),
        magnitude=columns("mag"),
        radius=columns("radius"),
        kind=columns("kind"),
        shift=np.stack([columns("dy"), columns("dx")], axis=2),
        parent=columns("parent"),
    )


def open_blends(url: str) -> TrainingCube:
    """The cube of blends at a path or URL, `ROOT/blends/train`.

    Raises
    ------
    InputError
        If there is none.
    """
    root, _, part = url.rstrip("/").rpartition(f"/{layout.blends('')}")
    store = Store(root or "/")
    if not part or not store.exists(f"{layout.blends(part)}/{cubes.RECORD}"):
        raise InputError(
            f"{url} is no cube of blends: `surveyproc blends --out ROOT` writes ROOT/blends/train"
        )
    return TrainingCube.open(store, layout.blends(part))


def blend_training_set(
    cube: TrainingCube, *, fluxes: bool = True, classes: bool = False, told: bool = False
) -> TrainingSet:
    """The training set of a cube of blends, which says itself what is held out.

    Parameters
    ----------
    cube : TrainingCube
        From `write_blends`.
    fluxes : bool
        Whether the network learns fluxes; masks come with the cube.
    classes : bool
        Whether it learns which rows are blends and which are galaxies alone.
    told : bool
        Whether it is told where the companions are. They come nearest first then, as `deblend`
        tells a footprint's; else in the order of the cube and of its masks, brightest first.

    Raises
    ------
    InputError
        If the cube holds no blends.
    """
    truth = blend_truth(cube)
    if told:
        truth = truth.nearest_first()
    targets: dict[str, NDArray[Any]] = {}
    if fluxes:
        targets[FLUXES] = truth.flux.reshape(cube.n, -1)
    if classes:
        targets[CLASS] = cube.index[f"{TARGET}{CLASS}"].to_numpy().astype(object)
    return TrainingSet.of_cube(
        cube,
        targets,
        held_out=cube.index["held_out"].to_numpy().astype(bool),
        places=truth.places,
    )


def _galaxies(cube: TrainingCube) -> int:
    if "galaxies" not in cube.record:
        raise InputError(
            f"{cube.store.url_of(cube.key)} holds no blends: `surveyproc blends` makes such a cube"
        )
    return int(cube.record["galaxies"])
