"""Training tables: fluxes and what is known of objects, and their split by position on the sky."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc.catalogs.labels import Targets, any_known, hash_targets, read_targets
from surveyproc.catalogs.readers import truth
from surveyproc.config.sections import TrainingSection
from surveyproc.errors import InputError
from surveyproc.measure.magnitudes import fluxes_of_magnitudes
from surveyproc.sky import healpix29
from surveyproc.train.cube import TrainingCube

Float = NDArray[np.float64]

HELD_OUT_SHARE = 0.15
"""Share of the rows, by whole sky pixels, that training sets aside for validation."""

SPLIT_PIXELS = 40
"""Sky pixels that a split wants at least; decides the HEALPix order."""

MAX_SPLIT_ORDER = 13


@dataclass(frozen=True)
class TrainingSet:
    """Objects with fluxes and labels.

    Attributes
    ----------
    flux, flux_err : float64 ndarray, shape (n, band)
        Flux densities and their errors in nJy; NaN = missing or unknown.
    targets : mapping of str to ndarray, first axis n
        What is known of them: see `catalogs.labels.Targets`.
    ra, dec : float64 ndarray, shape (n,)
        Positions in degrees, ICRS.
    bands : tuple of str
        The model's bands, in order of wavelength.
    dropped : dict of str to int
        Rows left out so far, by reason.
    reddening : float64 ndarray, shape (n,), or None
        Galactic E(B - V), mag; NaN = unknown.
    cube : TrainingCube or None
        Cutouts of the objects; `cube_row`, int64, shape (n,), says where each is, `no_image`,
        bool, shape (n,), which objects have none.
    group : int64 ndarray, shape (n,), or None
        Rows of one number are on one side of every split; by default those of one sky pixel are.
    held_out : bool ndarray, shape (n,), or None
        Rows to hold out where the set itself says it, as blends do whose galaxies are in no other
        row; None to split by position on the sky.
    places : float64 ndarray, shape (n, m, 2), or None
        (x, y) of neighbours on the cutouts, pixels from the central one; NaN = none.

    Raises
    ------
    InputError
        If the shapes do not fit each other.
    """

    flux: Float
    flux_err: Float
    targets: Targets
    ra: Float
    dec: Float
    bands: tuple[str, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    reddening: Float | None = None
    cube: TrainingCube | None = None
    cube_row: NDArray[np.int64] | None = None
    no_image: NDArray[np.bool_] | None = None
    group: NDArray[np.int64] | None = None
    held_out: NDArray[np.bool_] | None = None
    places: Float | None = None

    def __post_init__(self) -> None:
        for key in ("flux", "flux_err", "ra", "dec"):
            object.__setattr__(self, key, np.asarray(getattr(self, key), dtype=np.float64))
        object.__setattr__(self, "bands", tuple(self.bands))
        # Numpy's text has a width; labels are objects, as tables give them.
        targets = {
            name: values.astype(object) if values.dtype.kind == "U" else values
            for name, values in self.targets.items()
        }
        object.__setattr__(self, "targets", targets)
        n = len(self.ra)
        shapes = {key: getattr(self, key).shape for key in ("flux", "flux_err", "dec")}
        wide = (n, len(self.bands))
        lengths = {name: len(values) for name, values in self.targets.items()}
        if shapes != {"flux": wide, "flux_err": wide, "dec": (n,)} or set(lengths.values()) - {n}:
            raise InputError(
                f"training set of {n} positions and {wide[1]} bands: shapes {shapes}, labels "
                f"{lengths}"
            )

    @classmethod
    def of_cube(
        cls,
        cube: TrainingCube,
        targets: Targets,
        *,
        group: NDArray[np.int64] | None = None,
        held_out: NDArray[np.bool_] | None = None,
        places: Float | None = None,
        dropped: Mapping[str, int] = MappingProxyType({}),
    ) -> TrainingSet:
        """All objects of a cube of images without fluxes or positions; the rest as the class."""
        nothing = np.full((cube.n, len(cube.bands)), np.nan)
        return cls(
            flux=nothing,
            flux_err=nothing,
            targets=targets,
            ra=nothing[:, 0],
            dec=nothing[:, 0],
            bands=cube.bands,
            dropped={why: count for why, count in dropped.items() if count},
            cube=cube,
            cube_row=np.arange(cube.n),
            no_image=np.zeros(cube.n, bool),
            group=group,
            held_out=held_out,
            places=places,
        )

    def __len__(self) -> int:
        return len(self.ra)

    def take(self, rows: NDArray[Any]) -> TrainingSet:
        """The rows of a boolean mask or an index array."""
        keys = ("flux", "flux_err", "ra", "dec", "reddening", "cube_row", "no_image", "group")
        parts: dict[str, Any] = {
            "targets": {name: values[rows] for name, values in self.targets.items()}
        }
        for key in (*keys, "held_out", "places"):
            whole = getattr(self, key)
            parts[key] = None if whole is None else whole[rows]
        return replace(self, **parts)

    def usable(self, known: NDArray[np.bool_], what: str) -> TrainingSet:
        """Without rows that lack labels, a position, or every flux; all counted.

        Parameters
        ----------
        known : bool ndarray, shape (n,)
            Rows that something can be learned of.
        what : str
            What the others lack: `redshift`.

        Raises
        ------
        InputError
            If no row is left; the message has the counts.
        """
        with np.errstate(invalid="ignore"):
            reasons: dict[str, Any] = {f"no usable {what}": ~known}
            if self.group is None and self.held_out is None:
                reasons["no position"] = ~(np.isfinite(self.ra) & (np.abs(self.dec) <= 90))
            if self.no_image is not None:
                reasons["no image"] = self.no_image
            else:
                reasons["no flux in any band"] = ~np.isfinite(self.flux).any(axis=1)
        keep = np.ones(len(self), bool)
        dropped = dict(self.dropped)
        for reason, bad in reasons.items():
            dropped[reason] = dropped.get(reason, 0) + int((keep & bad).sum())
            keep &= ~bad
        dropped = {reason: count for reason, count in dropped.items() if count}
        if not keep.any():
            counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise InputError(f"no row of the training set is usable ({counts or 'it is empty'})")
        return replace(self.take(keep), dropped=dropped)

    def split(self, seed: int, share: float) -> NDArray[np.bool_]:
        """Rows to hold out, as `sky_split`, by groups if there are some."""
        if self.group is None:
            return sky_split(self.ra, self.dec, seed, share)
        return _held_out(self._groups, seed, share)

    def folds(self, seed: int, folds: int) -> NDArray[np.int64]:
        """Fold of each row, as `sky_folds`, by groups if there are some."""
        if self.group is None:
            return sky_folds(self.ra, self.dec, seed, folds)
        return _in_folds(self._groups, seed, folds)

    @property
    def _groups(self) -> tuple[Any, Any, Any]:
        assert self.group is not None
        return np.unique(self.group, return_inverse=True, return_counts=True)

    @property
    def checksum(self) -> str:
        """First 16 hex digits of the SHA-256 of bands, all values, and the cube's version."""
        total = hashlib.sha256("\0".join(self.bands).encode())
        for key in ("flux", "flux_err", "ra", "dec"):
            total.update(np.ascontiguousarray(getattr(self, key), dtype="<f8").tobytes())
        hash_targets(total, self.targets)
        if self.reddening is not None:
            total.update(np.ascontiguousarray(self.reddening, dtype="<f8").tobytes())
        if self.group is not None:
            total.update(np.ascontiguousarray(self.group, dtype="<i8").tobytes())
        if self.cube is not None and self.cube_row is not None:
            # Blends of other galaxies come to lie where those before did.
            total.update(self.cube.key.encode() + self.cube.record["index_sha256"].encode())
            total.update(np.ascontiguousarray(self.cube_row, dtype="<i8").tobytes())
        if self.held_out is not None:
            total.update(np.ascontiguousarray(self.held_out, dtype=bool).tobytes())
        return total.hexdigest()[:16]


def from_labels(section: TrainingSection, path: str) -> TrainingSet:
    """Training set of labels that carry their own AB magnitudes.

    Magnitudes that are not finite, <= 0 or > 40 are missing. Fluxes are 10^((31.4 - m) / 2.5) nJy;
    their errors f * ln(10) / 2.5 * dm, unknown where dm is not finite or <= 0.

    Parameters
    ----------
    section : TrainingSection
        `magnitudes`, `magnitude_errors`, `redshift`, `targets`, `ra`, `dec`, `select` are read.
    path : str
        Path or URL of the table, resolved.

    Returns
    -------
    TrainingSet
        Bands in the order of `section.magnitudes`; `dropped` counts the rows left out.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, or has no usable row.
    """
    if not section.magnitudes:
        raise InputError(f"{path}: training.magnitudes names no column")
    bands = tuple(section.magnitudes)
    stray = sorted(set(section.magnitude_errors) - set(bands))
    if stray:
        raise InputError(f"training.magnitude_errors: {stray[0]!r} is not in training.magnitudes")
    wanted = [section.ra, section.dec, *section.magnitudes.values()]
    targets, columns = read_targets(section, path, [*wanted, *section.magnitude_errors.values()])
    magnitudes = np.stack([columns[section.magnitudes[band]] for band in bands], axis=1)
    unknown = np.full(len(magnitudes), np.nan)
    errors = np.stack(
        [columns.get(section.magnitude_errors.get(band, ""), unknown) for band in bands], axis=1
    )
    flux, flux_err = fluxes_of_magnitudes(magnitudes, errors)
    whole = TrainingSet(
        flux=flux,
        flux_err=flux_err,
        targets=targets,
        ra=columns[section.ra],
        dec=columns[section.dec],
        bands=bands,
    )
    if section.select:
        chosen = truth(columns[section.select], path, section.select)
        whole = replace(whole.take(chosen), dropped={"not selected": int((~chosen).sum())})
    try:
        return whole.usable(any_known(whole.targets, len(whole)), " or ".join(whole.targets))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def sky_split(
    ra: Float,
    dec: Float,
    seed: int,
    share: float = HELD_OUT_SHARE,
    order: int | None = None,
) -> NDArray[np.bool_]:
    """Rows to hold out: whole HEALPix pixels, so that no object has close neighbours on both sides.

    Pixels are put in an order that depends on the seed and the pixel's number alone and held out
    until at least `share` of the rows is. Rows that are added therefore move few others.

    Parameters
    ----------
    ra, dec : float64 ndarray, shape (n,)
        Degrees, ICRS, finite.
    seed : int
        Another seed holds out other pixels.
    share : float
        Share of rows to hold out, 0 < share < 1.
    order : int, optional
        HEALPix order of the pixels (order 8 is 13.7 arcmin). By default the lowest order at which
        the rows occupy 40 pixels, at most 13 (26 arcsec).

    Returns
    -------
    bool ndarray, shape (n,)
        True = held out. Never all rows, unless they share one pixel at the highest order.
    """
    return _held_out(_pixels(ra, dec, order), seed, share)


def _held_out(parts: tuple[Any, Any, Any], seed: int, share: float) -> NDArray[np.bool_]:
    distinct, member, counts = parts
    drawn = sorted(range(len(distinct)), key=lambda k: _draw(seed, int(distinct[k])))
    held = np.zeros(len(distinct), bool)
    rows = 0
    for k in drawn[:-1] or drawn:
        if rows >= share * len(member):
            break
        held[k] = True
        rows += int(counts[k])
    found: NDArray[np.bool_] = held[member]
    return found


def sky_folds(ra: Float, dec: Float, seed: int, folds: int) -> NDArray[np.int64]:
    """Fold of each row, 0 to folds - 1: whole HEALPix pixels, folds about equal in rows.

    Pixels come in the order of `sky_split` and each goes to the fold with the fewest rows so far.

    Parameters
    ----------
    ra, dec : float64 ndarray, shape (n,)
        Degrees, ICRS, finite.
    seed : int
        Another seed makes other folds.
    folds : int
        Number of folds.

    Raises
    ------
    InputError
        If the rows lie in fewer pixels than there are folds.
    """
    return _in_folds(_pixels(ra, dec, None), seed, folds)


def _in_folds(parts: tuple[Any, Any, Any], seed: int, folds: int) -> NDArray[np.int64]:
    distinct, member, counts = parts
    if len(distinct) < folds:
        raise InputError(
            f"training set: its {len(member)} rows lie in {len(distinct)} places of the sky, too "
            f"few for training.folds = {folds}"
        )
    fold, filled = np.zeros(len(distinct), np.int64), np.zeros(folds, np.int64)
    for k in sorted(range(len(distinct)), key=lambda k: _draw(seed, int(distinct[k]))):
        fold[k] = int(filled.argmin())
        filled[fold[k]] += counts[k]
    found: NDArray[np.int64] = fold[member]
    return found


def _pixels(ra: Float, dec: Float, order: int | None) -> tuple[Any, Any, Any]:
    """Distinct HEALPix pixels of the rows, each row's place among them, and rows of each."""
    finest = healpix29(ra, dec)
    orders = [order] if order is not None else list(range(MAX_SPLIT_ORDER + 1))
    for level in orders:
        # In the nested numbering a pixel's parent is its number without the last two bits.
        pixels = finest >> (2 * (29 - level))
        distinct, member, counts = np.unique(pixels, return_inverse=True, return_counts=True)
        if len(distinct) >= SPLIT_PIXELS:
            break
    return distinct, member, counts


def _draw(seed: int, pixel: int) -> bytes:
    return hashlib.sha256(f"{seed}:{pixel}".encode()).digest()
