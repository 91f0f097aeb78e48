"""Parents of artificial blends: isolated galaxies with known fluxes, radii, masks and types.

From stamps of real galaxies, whose neighbours are taken out, as Boucaud et al. 2019 (MNRAS 491,
2481), section 2.1, do; `surveyproc.simulate.galaxies` draws others. Pixels are nJy; a stamp's
galaxy is at index side // 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from surveyproc.errors import InputError
from surveyproc.schemas import AB_ZEROPOINT_NJY

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Images = NDArray[np.float32]

DILATION = 5
"""Steps by which what was detected is made larger before it is taken out."""
DETECTION, LEAST_PIXELS = 1.5, 5
"""Standard deviations of the background, and pixels of at least that, that make a detection."""
CENTRE = 3.0
"""Pixels from the centre of a stamp within which its galaxy must be found."""
KRON = 2.5
"""Kron radii of the elliptical aperture (SExtractor's FLUX_AUTO)."""
Fill = Literal["pixels", "noise"]


@dataclass(frozen=True)
class Parents:
    """Isolated galaxies.

    Attributes
    ----------
    images : float32 ndarray, shape (n, band, side, side)
        nJy a pixel, background subtracted, nothing but the galaxy in them.
    flux : float64 ndarray, shape (n, band)
        True fluxes, nJy.
    mask : bool ndarray, shape (n, side, side)
        Pixels that belong to the galaxy.
    radius : float64 ndarray, shape (n,)
        Half-light radii, pixels.
    kind : ndarray of str, shape (n,)
        Morphological types; "" where unknown.
    bands : tuple of str
        Bands of the images.
    select : int
        Index of the band in which galaxies were detected and magnitudes are compared.
    psf : float64 ndarray, shape (n,)
        FWHM in pixels; only galaxies of one PSF are blended. NaN where unknown, one for all.
    dropped : dict of str to int
        Stamps left out, by reason.

    Raises
    ------
    InputError
        If the shapes do not fit each other, or a galaxy has no positive flux in the band of the
        selection, and so no magnitude.
    """

    images: Images
    flux: Float
    mask: Bool
    radius: Float
    kind: NDArray[np.str_]
    bands: tuple[str, ...]
    select: int
    psf: Float
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, bands, side, _ = self.images.shape
        shapes = {
            "images": ((n, len(self.bands), side, side), self.images.shape),
            "flux": ((n, bands), self.flux.shape),
            "mask": ((n, side, side), self.mask.shape),
            **{key: ((n,), getattr(self, key).shape) for key in ("radius", "kind", "psf")},
        }
        for key, (wanted, found) in shapes.items():
            if wanted != found:
                raise InputError(f"parents of blends: {key} has shape {found}, not {wanted}")
        faint = int((~(self.flux[:, self.select] > 0)).sum())
        if faint:
            raise InputError(
                f"parents of blends: {faint} of {n} galaxies have no positive flux in band "
                f"{self.bands[self.select]}, by which they are selected: leave them out"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """Pixels on a side."""
        return int(self.images.shape[-1])

    @property
    def magnitude(self) -> Float:
        """AB magnitudes in the band of the selection, shape (n,)."""
        return AB_ZEROPOINT_NJY - 2.5 * np.log10(self.flux[:, self.select])


class Ellipse(NamedTuple):
    """An aperture of semi-axes `reach` a and `reach` b.

    Attributes
    ----------
    x, y : float
        Centre, pixels from the centre of the stamp's first.
    a, b : float
        Root mean square extents along the axes, pixels.
    theta : float
        Of the major axis, radians from the x axis to the y axis.
    reach : float
        In units of a and b.
    """

    x: float
    y: float
    a: float
    b: float
    theta: float
    reach: float

    def flux(self, plane: Float) -> float:
        """Sum of the pixels of a plane, shape (side, side), within it."""
        own = [[value] for value in self]
        return float(sep.sum_ellipse(np.ascontiguousarray(plane), *own)[0][0])


@dataclass(frozen=True)
class Isolated:
    """One galaxy without its neighbours.

    Attributes
    ----------
    image : float64 ndarray, shape (band, side, side)
        As it came, less the neighbours.
    mask : bool ndarray, shape (side, side)
        The galaxy's own segment.
    flux : float64 ndarray, shape (band,)
        In the Kron ellipse of the band of the detection.
    radius : float
        Half-light radius in that band, pixels.
    ellipse : Ellipse
        That Kron ellipse.
    """

    image: Float
    mask: Bool
    flux: Float
    radius: float
    ellipse: Ellipse


def isolate(
    image: Float, select: int, rng: np.random.Generator, *, fill: Fill = "pixels"
) -> Isolated | None:
    """Take the neighbours out of a stamp and measure the galaxy in its centre.

    What is detected besides the galaxy is made larger by `DILATION` steps, but not into the
    galaxy's own segment, and filled. The paper fills with pixels of the empty background, drawn at
    random (the same places in all bands). Its public package fills with Gaussian noise of the
    background's standard deviation, and adds that noise to the whole stamp too.

    Parameters
    ----------
    image : float64 ndarray, shape (band, side, side)
        Background subtracted, finite.
    select : int
        Band of the detection.
    rng : numpy.random.Generator
        What is filled in.
    fill : {'pixels', 'noise'}
        As the paper, or as its public package.

    Returns
    -------
    Isolated or None
        None if there is no galaxy within `CENTRE` pixels of the centre, or no background.
    """
    detection = np.ascontiguousarray(image[select], dtype=np.float64)
    sigma = float(sep.Background(detection).globalrms)
    found, segments = sep.extract(
        detection, DETECTION, err=sigma, minarea=LEAST_PIXELS, segmentation_map=True
    )
    middle = image.shape[-1] // 2
    distance = np.hypot(found["x"] - middle, found["y"] - middle)
    if not len(found) or distance.min() > CENTRE:
        return None
    own = int(distance.argmin())
    mask = np.asarray(segments == own + 1)
    others = binary_dilation((segments > 0) & ~mask, iterations=DILATION) & ~mask
    empty = np.flatnonzero(~binary_dilation(segments > 0, iterations=DILATION))
    if not len(empty):
        return None
    clean = image.astype(np.float64)
    if fill == "noise":
        spread = clean.reshape(len(clean), -1)[:, empty].std(axis=1)
        noise = rng.normal(0.0, 1.0, clean.shape) * spread[:, None, None]
        clean[:, others] = 0.0
        clean += noise
    else:
        drawn = rng.choice(empty, int(others.sum()))
        clean[:, others] = clean.reshape(len(clean), -1)[:, drawn]
    ellipse = _kron(clean[select], found[own])
    flux = np.array([ellipse.flux(plane) for plane in clean])
    radius, _ = sep.flux_radius(
        clean[select],
        [ellipse.x],
        [ellipse.y],
        [ellipse.reach * ellipse.a],
        0.5,
        normflux=[flux[select]],
        subpix=5,
    )
    return Isolated(clean, mask, flux, float(radius[0]), ellipse)


def _kron(plane: Float, one: Any) -> Ellipse:
    """The Kron ellipse of a detection."""
    shape = {key: float(one[key]) for key in ("x", "y", "a", "b", "theta")}
    kron, _ = sep.kron_radius(plane, *([value] for value in shape.values()), 6.0)
    # SExtractor's least Kron radius of 3.5 axes, for objects too small to have one.
    return Ellipse(**shape, reach=max(float(KRON * kron[0]), 3.5))


def from_stamps(
    images: NDArray[Any],
    bands: tuple[str, ...],
    select: str,
    *,
    seed: int = 0,
    fill: Fill = "pixels",
    kind: NDArray[np.str_] | None = None,
) -> Parents:
    """Parents from stamps of real galaxies.

    Parameters
    ----------
    images : ndarray of float, shape (n, band, side, side)
        nJy a pixel, background subtracted, the galaxy at index side // 2.
    bands : tuple of str
        Of the images.
    select : str
        Band of the detection.
    seed : int
        Of what is filled in.
    fill : {'pixels', 'noise'}
        See `isolate`.
    kind : ndarray of str, shape (n,), optional
        Morphological types.

    Returns
    -------
    Parents
        Without stamps that hold pixels that are not finite, no galaxy in their centre, or one
        without a positive flux in the band of the detection; `dropped` counts them.

    Raises
    ------
    InputError
        If the array has another shape, `select` is no band of it, or no stamp is left.
    """
    if images.ndim != 4 or images.shape[1] != len(bands) or images.shape[2] != images.shape[3]:
        raise InputError(
            f"stamps of parents: shape {images.shape} is not (n, {len(bands)} bands, side, side)"
        )
    if select not in bands:
        raise InputError(f"stamps of parents: band {select!r} is not among {', '.join(bands)}")
    chosen = bands.index(select)
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    galaxies: list[Isolated] = []
    dropped: dict[str, int] = {}
    for number, image in enumerate(images):
        reason, one = "", None
        if not np.isfinite(image).all():
            reason = "with pixels that are not finite"
        elif (one := isolate(image.astype(np.float64), chosen, rng, fill=fill)) is None:
            reason = "without a galaxy in the centre"
        elif not (one.flux[chosen] > 0 and one.radius > 0):
            reason = "without a positive flux"
        if one is None or reason:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        kept.append(number)
        galaxies.append(one)
    if not galaxies:
        counts = ", ".join(f"{count} {why}" for why, count in dropped.items()) or "there are none"
        raise InputError(f"no stamp can be the parent of a blend: {counts}")
    return Parents(
        images=np.stack([one.image for one in galaxies]).astype(np.float32),
        flux=np.stack([one.flux for one in galaxies]),
        mask=np.stack([one.mask for one in galaxies]),
        radius=np.array([one.radius for one in galaxies]),
        kind=np.full(len(kept), "") if kind is None else np.asarray(kind)[kept].astype(str),
        bands=bands,
        select=chosen,
        psf=np.full(len(kept), np.nan),
        dropped=dropped,
    )
