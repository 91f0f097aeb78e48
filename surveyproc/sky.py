"""HEALPix, pixels and ICRS positions, and which tile owns an object where tiles overlap."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS, FITSFixedWarning, NoConvergence
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import NDArray

Float = NDArray[np.float64]


def healpix29(ra: Float, dec: Float) -> NDArray[np.int64]:
    """HEALPix nested pixel at order 29 of each position (degrees, ICRS), as HATS defines it."""
    # What hats computes it with; hats itself takes seconds to import.
    import cdshealpix
    from astropy.coordinates import Latitude, Longitude

    lon = Longitude(np.asarray(ra, np.float64), unit="deg")
    lat = Latitude(np.asarray(dec, np.float64), unit="deg")
    pixels: NDArray[np.int64] = cdshealpix.lonlat_to_healpix(lon, lat, 29).astype(np.int64)
    return pixels


def unit_vectors(ra: Float, dec: Float) -> Float:
    """Cartesian unit vectors, shape (n, 3), of positions in degrees."""
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def lonlat(vectors: Float) -> tuple[Float, Float]:
    """Longitude, 0 to 360, and latitude in degrees of vectors of shape (n, 3)."""
    x, y, z = vectors.T
    lon = np.degrees(np.arctan2(y, x)) % 360.0 % 360.0  # -1e-17 % 360 is 360
    return lon, np.degrees(np.arctan2(z, np.hypot(x, y)))


def around(ra: float, dec: float, radius: float) -> tuple[Float, Float]:
    """A position and 16 others on a small circle around it; all in degrees, each shape (17,)."""
    centre = unit_vectors(np.array(ra), np.array(dec))
    # Any axis that is not the centre's own gives two that are tangents there.
    east = np.cross(np.eye(3)[np.argmin(np.abs(centre))], centre)
    east /= np.linalg.norm(east)
    angle = np.arange(16) * np.pi / 8
    away = np.outer(np.cos(angle), east) + np.outer(np.sin(angle), np.cross(centre, east))
    return lonlat(np.vstack([centre, centre + np.radians(radius) * away]))


def cap(ra: Float, dec: Float) -> tuple[float, float, float]:
    """A circle on the sky that holds all positions: (ra, dec, radius), degrees.

    The centre is the direction of the mean unit vector, so that RA = 0 needs no special care.
    """
    vectors = unit_vectors(ra, dec)
    centre = vectors.mean(axis=0)
    norm = float(np.linalg.norm(centre))
    centre = centre / norm if norm > 1e-9 else np.array([0.0, 0.0, 1.0])
    # The chord keeps its precision where the cosine of a small angle does not.
    chord = np.linalg.norm(vectors - centre, axis=-1).max()
    radius = float(np.degrees(2 * np.arcsin(min(1.0, chord / 2))))
    lon, lat = lonlat(centre)
    return float(lon), float(lat), radius


class Footprint(Protocol):
    """What ownership needs to know of a tile."""

    @property
    def id(self) -> str:
        """Name of the tile; decides between tiles in which an object lies equally deep."""

    @property
    def wcs(self) -> str:
        """The WCS as header text, one card a line."""

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) pixels."""

    @property
    def pixel_scale(self) -> float:
        """Arcsec a pixel."""

    @property
    def ra(self) -> float:
        """Right ascension of the bounding circle's centre, degrees."""

    @property
    def dec(self) -> float:
        """Declination of the bounding circle's centre, degrees."""

    @property
    def radius(self) -> float:
        """Radius of the bounding circle, degrees."""


def wcs_from_header(text: str) -> Any:
    """The celestial WCS written in `text`, FITS header cards separated by newlines.

    Cached: treat the result as read-only. Every thread has its own, since wcslib changes its
    structures for the time of a call.
    """
    return _wcs_of_thread(text, threading.get_ident())


@lru_cache(maxsize=256)
def _wcs_of_thread(text: str, thread: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(Header.fromstring(text, sep="\n"), naxis=2)


class Turn:
    """Positions of a celestial frame turned to ICRS and back, degrees in and out.

    Parameters
    ----------
    frame : BaseCoordinateFrame
        Of astropy: FK5 of any equinox, FK4, Galactic.
    """

    def __init__(self, frame: Any) -> None:
        from astropy.coordinates import FK4, ICRS, FK4NoETerms

        self.frame, self.icrs = frame, ICRS()
        # All but FK4 (aberration, a rotating frame) is a rotation, and a product of matrices saves
        # the milliseconds that each call of astropy costs.
        self.rotation = None
        if not isinstance(frame, FK4 | FK4NoETerms):
            axes = self._by_astropy(
                np.array([0.0, 90, 0]), np.array([0.0, 0, 90]), frame, self.icrs
            )
            self.rotation = unit_vectors(*axes)

    @staticmethod
    def _by_astropy(lon: Float, lat: Float, source: Any, target: Any) -> tuple[Float, Float]:
        from astropy.coordinates import SkyCoord

        there = SkyCoord(lon, lat, unit="deg", frame=source).transform_to(target).spherical
        return there.lon.deg, there.lat.deg

    def to_icrs(self, lon: Float, lat: Float) -> tuple[Float, Float]:
        """(ra, dec) of positions of the frame, shape (n,)."""
        if self.rotation is None:
            return self._by_astropy(lon, lat, self.frame, self.icrs)
        return lonlat(unit_vectors(lon, lat) @ self.rotation)

    def from_icrs(self, ra: Float, dec: Float) -> tuple[Float, Float]:
        """(longitude, latitude) in the frame, shape (n,)."""
        if self.rotation is None:
            return self._by_astropy(ra, dec, self.icrs, self.frame)
        return lonlat(unit_vectors(ra, dec) @ self.rotation.T)


_TURNS: dict[tuple[str, str, str], Turn | None] = {}


def turn_of(wcs: Any) -> Turn | None:
    """How a WCS's frame is turned to ICRS, by RADESYS and EQUINOX; None if it is ICRS.

    Raises
    ------
    ValueError
        If astropy knows no such frame.
    """
    named = wcs.wcs
    key = (named.lngtyp, named.radesys, str(named.equinox))
    if key not in _TURNS:
        from astropy.coordinates import ICRS

        frame = wcs_to_celestial_frame(wcs)
        _TURNS[key] = None if isinstance(frame, ICRS) else Turn(frame)
    return _TURNS[key]


def is_nearly_icrs(wcs: Any) -> bool:
    """Whether a WCS's frame is ICRS to a tenth of an arcsecond, as FK5 of J2000 is (23 mas)."""
    turn = turn_of(wcs)
    if turn is None or turn.rotation is None:
        return turn is None
    return bool(np.abs(turn.rotation - np.eye(3)).max() < np.radians(0.1 / 3600))


def sky_positions(wcs: Any, x: Float, y: Float) -> tuple[Float, Float]:
    """ICRS (ra, dec) in degrees of zero-based pixels; NaN for what is not on the sky.

    Parameters
    ----------
    wcs : WCS
        Celestial, longitude first, of any frame that astropy turns to ICRS.
    x, y : float64 array_like, shape (n,)
        Pixel centres at integers.

    Returns
    -------
    ra, dec : float64 ndarray, shape (n,)
        `ra` from 0 to 360.
    """
    lon, lat = wcs.all_pix2world(x, y, 0)
    turn = turn_of(wcs)
    return (lon % 360.0 % 360.0, lat) if turn is None else turn.to_icrs(lon, lat)


def pixel_positions(wcs: Any, ra: Float, dec: Float) -> tuple[Float, Float]:
    """Zero-based pixel (x, y) of ICRS positions in degrees, pixel centres at integers.

    The positions are turned to the WCS's frame, distortions (SIP, TPV) are inverted. A position
    that does not project, is not finite, or does not come back to itself (the far side of the sky,
    or far outside a distortion polynomial's range) gets NaN.
    """
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    x, y = np.full(ra.shape, np.nan), np.full(ra.shape, np.nan)
    # Declinations beyond a pole are no positions; wcslib would fold some of them over it.
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90.0)
    if not good.any():
        return x, y
    turn = turn_of(wcs)
    lon, lat = (ra[good], dec[good]) if turn is None else turn.from_icrs(ra[good], dec[good])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            px, py = wcs.all_world2pix(lon, lat, 0)
        except NoConvergence as problem:
            px, py = problem.best_solution.T.copy()
            failed = np.zeros(px.shape, bool)
            for indices in (problem.divergent, problem.slow_conv):
                if indices is not None:
                    failed[indices] = True
            px[failed] = py[failed] = np.nan
        vectors, back = unit_vectors(lon, lat), unit_vectors(*wcs.all_pix2world(px, py, 0))
    # A chord in degrees; a tenth of a pixel is far above rounding and far below a wrong branch.
    chord = np.degrees(np.linalg.norm(vectors - back, axis=-1))
    tolerance = 0.1 * np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))
    lost = ~(chord <= tolerance)
    px, py = np.where(lost, np.nan, px), np.where(lost, np.nan, py)
    x[good], y[good] = px, py
    return x, y


def pixel_sides(wcs: Any, x: float, y: float) -> tuple[Float, Float]:
    """The sides of the pixel at zero-based (x, y) along x and y, as vectors in radians."""
    step = 0.5
    lon, lat = wcs.all_pix2world([x - step, x + step, x, x], [y, y, y - step, y + step], 0)
    left, right, low, high = unit_vectors(lon, lat)
    return right - left, high - low


def local_pixel_scale(wcs: Any, x: float, y: float) -> float:
    """Side in arcsec of a square with the area of the pixel at zero-based (x, y)."""
    area = float(np.linalg.norm(np.cross(*pixel_sides(wcs, x, y))))
    return float(np.degrees(np.sqrt(area)) * 3600.0)


def depth(x: Float, y: Float, shape: tuple[int, int]) -> Float:
    """Distance in pixels from (x, y) to the nearest edge of a tile; negative outside, NaN for NaN.

    Parameters
    ----------
    x, y : float64 ndarray, shape (n,)
        Zero-based, pixel centres at integers: the tile covers -0.5 to nx - 0.5.
    shape : (int, int)
        (ny, nx) of the tile.
    """
    ny, nx = shape
    across = np.minimum(x + 0.5, nx - 0.5 - x)
    return np.minimum(across, np.minimum(y + 0.5, ny - 0.5 - y))


def _chord(angle: Float) -> Float:
    """Length of the chord of each angle in degrees, 180 at most, rounded up."""
    return 2 * np.sin(np.radians(np.minimum(angle, 180.0)) / 2) * (1 + 1e-9) + 1e-12


def owners(
    tiles: Sequence[Footprint], ra: Float, dec: Float
) -> tuple[NDArray[np.int64], Float, Float]:
    """The tile each object is taken from: the one in which it lies deepest, in arcsec.

    The answer depends on the set of tiles and the position alone: between tiles in which an object
    lies equally deep, the smallest id wins, whatever the order of `tiles`.

    Parameters
    ----------
    tiles : sequence of Footprint
        All tiles of the survey.
    ra, dec : float64 ndarray, shape (n,)
        Degrees, ICRS.

    Returns
    -------
    tile : int64 ndarray, shape (n,)
        Index into `tiles`; -1 where no tile covers the object.
    x, y : float64 ndarray, shape (n,)
        Zero-based position on that tile; NaN where there is none.

    Notes
    -----
    Tiles whose bounding circle is apart from the objects' own are passed over; of the others, each
    projects the objects inside its circle only.
    """
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    owner = np.full(ra.shape, -1, np.int64)
    best_x, best_y = np.full(ra.shape, np.nan), np.full(ra.shape, np.nan)
    best = np.full(ra.shape, -np.inf)
    finite = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if not len(tiles) or not finite.size:
        return owner, best_x, best_y
    positions = unit_vectors(ra[finite], dec[finite])
    centres = unit_vectors(np.array([t.ra for t in tiles]), np.array([t.dec for t in tiles]))
    chords = _chord(np.array([t.radius for t in tiles]))
    middle_ra, middle_dec, spread = (np.array(one) for one in cap(ra[finite], dec[finite]))
    apart = np.linalg.norm(centres - unit_vectors(middle_ra, middle_dec), axis=1)
    meeting = np.flatnonzero(apart <= chords + _chord(spread))
    for index in sorted(meeting.tolist(), key=lambda i: tiles[i].id):
        tile = tiles[index]
        # |p - c|^2 = 2 - 2 p.c, with room for the rounding of the product.
        near = finite[positions @ centres[index] >= 1 - chords[index] ** 2 / 2 - 1e-15]
        if not near.size:
            continue
        x, y = pixel_positions(wcs_from_header(tile.wcs), ra[near], dec[near])
        inside = depth(x, y, tile.shape)
        with np.errstate(invalid="ignore"):
            wins = (inside >= 0) & (inside * tile.pixel_scale > best[near])
        taken = near[wins]
        owner[taken], best[taken] = index, inside[wins] * tile.pixel_scale
        best_x[taken], best_y[taken] = x[wins], y[wins]
    return owner, best_x, best_y
