"""Artificial blends with truth, from stamps of real galaxies or from drawn ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from surveyproc.errors import ConfigError, InputError
from surveyproc.evaluate.blends import galaxy_names
from surveyproc.simulate.blends import RULES
from surveyproc.simulate.parents import Fill, Parents, from_stamps
from surveyproc.store.storage import Store
from surveyproc.train.blends import BlendCounts, write_blends
from surveyproc.train.cube import TrainingCube

FILLS: dict[str, Fill] = {"paper": "pixels", "package": "noise"}
"""What neighbours are filled with, by the name of the rule."""


@dataclass(frozen=True)
class Part:
    """One of the two cubes.

    Attributes
    ----------
    url : str
        Where it lies.
    blends, galaxies : int
        How many there are, and how many galaxies they are made of.
    """

    url: str
    blends: int
    galaxies: int


@dataclass(frozen=True)
class Blended:
    """What was made.

    Attributes
    ----------
    train, test : Part
        The cubes to train with, and of the test.
    names : tuple of str
        What the galaxies of a blend are called.
    dropped : dict of str to int
        Stamps that were left out, by reason.
    """

    train: Part
    test: Part
    names: tuple[str, ...]
    dropped: dict[str, int]


def blends(
    out: str,
    *,
    stamps: Path | None = None,
    bands: tuple[str, ...] = (),
    unit: float = 1.0,
    parents: int = 2000,
    side: int = 128,
    noise: tuple[float, ...] = (1.0,),
    fwhms: tuple[float, ...] = (3.0,),
    rule: str = "paper",
    galaxies: int = 2,
    isolated: float = 0.0,
    within: float | None = None,
    counts: BlendCounts | None = None,
    seed: int = 0,
) -> Blended:
    """Write `blends/train` and `blends/test` under the root `out`.

    Parameters
    ----------
    out : str
        Path or URL of the root; models that are trained with the blends come to lie there too.
    stamps : Path, optional
        A .npz file with `images`, shape (n, band, side, side), and `bands`: stamps of isolated real
        galaxies. Without it galaxies are drawn (`simulate.galaxies.drawn`).
    bands : tuple of str
        Of the stamps, those to take, that of the selection first; all by default. Without stamps
        names of those to draw, from blue to red.
    unit : float
        nJy of one unit of the stamps' pixels.
    parents, side : int
        Galaxies to draw, and pixels on a side; not for stamps.
    noise, fwhms : tuple of float
        Of drawn galaxies, in all bands: levels of noise, nJy a pixel, of which each blend has one,
        and widths of PSFs, pixels, of which each is that of an equal share of the galaxies.
    rule : {'paper', 'package'}
        Which galaxies are blended, how far apart, and what their neighbours are filled with.
    galaxies : int
        In every blend.
    isolated : float
        Share of the rows that are galaxies alone.
    within : float, optional
        Largest distance of a companion, pixels: less than the catalog tells apart.
    counts : BlendCounts, optional
        How many blends.
    seed : int
        The same seed gives the same blends.

    Returns
    -------
    Blended

    Raises
    ------
    ConfigError
        If the rule or a band is unknown, or a level of noise or a width is none.
    InputError
        If the stamps cannot be read, or the rule lets no galaxies blend.
    """
    if rule not in RULES:
        raise ConfigError(f"blends: no rule is called {rule!r}, only {', '.join(RULES)}")
    if stamps is None:
        from surveyproc.simulate.galaxies import Sky, drawn

        if bad := [level for level in noise if not 0 <= level < np.inf]:
            raise ConfigError(f"blends: noise of {bad[0]:g} nJy a pixel is none")
        names = bands or ("F160W",)
        skies = [Sky(sigma=max(noise)) for _ in names]
        found = drawn(parents, side=side, skies=skies, bands=names, fwhms=fwhms, seed=seed)
        levels = np.repeat(np.array(noise)[:, None], len(names), axis=1)
    else:
        found, levels = _read(stamps, bands, unit, seed, FILLS[rule]), None
    train, test = write_blends(
        Store(out),
        found,
        counts,
        rule=replace(RULES[rule], within=within),
        galaxies=galaxies,
        isolated=isolated,
        noise=levels,
        seed=seed,
    )
    return Blended(_part(train), _part(test), galaxy_names(galaxies), found.dropped)


def _part(cube: TrainingCube) -> Part:
    return Part(cube.store.url_of(cube.key), cube.n, cube.record["parents"])


def _read(path: Path, bands: tuple[str, ...], unit: float, seed: int, fill: Fill) -> Parents:
    try:
        # Opened here: numpy leaves a file open that is no whole archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            images, names = held["images"], [str(name) for name in np.atleast_1d(held["bands"])]
            kind = held["kind"].astype(str) if "kind" in held else None
            if images.dtype.kind not in "fiu" or images.shape[1:2] != (len(names),):
                raise ValueError(
                    f"`images` has shape {images.shape} and type {images.dtype}, `bands` "
                    f"{len(names)} names"
                )
            if kind is not None and kind.shape != images.shape[:1]:
                raise ValueError(f"`kind` has shape {kind.shape}, and there are {len(images)}")
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise InputError(
            f"{path}: cannot be read as stamps ({error}): give a .npz file with `images`, shape "
            "(n, band, side, side), numbers, and `bands`; perhaps `kind`, shape (n,)"
        ) from error
    chosen = bands or tuple(names)
    if unknown := [band for band in chosen if band not in names]:
        raise ConfigError(f"{path}: has no band {unknown[0]!r}, only {', '.join(names)}")
    planes = images[:, [names.index(band) for band in chosen]] * unit
    return from_stamps(planes, chosen, chosen[0], seed=seed, fill=fill, kind=kind)
