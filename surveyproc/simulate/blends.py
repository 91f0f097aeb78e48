"""Artificial blends with truth: which galaxies, how far apart, and the sum of their stamps.

Boucaud et al. 2019, section 2.2, put a companion beside a central galaxy and add the two stamps.
`PAPER` is that, `PACKAGE` what the authors' public package does. Any number of companions may
follow: each is held to the rule with the central galaxy, and kept off the others as far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from surveyproc.errors import ConfigError, InputError
from surveyproc.simulate.parents import DILATION, Bool, Float, Images, Parents

Int = NDArray[np.int64]

TRIES = 25
"""Shifts that are drawn for a pair, before another pair is."""
PAIRS = 20
"""Sets of galaxies that are drawn for a blend, before the rule is said not to fit the parents."""


@dataclass(frozen=True)
class Rule:
    """Which galaxies are blended, and how far apart.

    Shifts are whole pixels, uniform in a square, and accepted if their length D satisfies
    least R <= D <= most R', D <= side / 2, D <= within. Where the first limit is not below the
    second it becomes 0.8 of it.

    Attributes
    ----------
    magnitudes : float
        Largest difference to the central galaxy's magnitude.
    least, most : float
        Of D, in half-light radii; R is the larger of the two galaxies' radii.
    most_of : {'larger', 'smaller'}
        The radius R' that `most` counts in.
    turn : bool
        Whether each galaxy is turned and mirrored at random before the sum (ours): few parents
        then give more blends.
    within : float
        Largest D in pixels (ours): that of blends which no catalog tells apart.
    """

    magnitudes: float = 2.0
    least: float = 0.5
    most: float = 4.0
    most_of: Literal["larger", "smaller"] = "larger"
    turn: bool = False
    within: float | None = None

    def __post_init__(self) -> None:
        far = self.within is None or self.within >= 1
        if not (self.magnitudes > 0 and self.least >= 0 and self.most > 0 and far):
            raise ConfigError(f"rule of blends: {self} has a limit that nothing satisfies")

    def limits(self, one: Float, other: Float, side: int) -> tuple[Float, Float]:
        """Least and most distance, pixels, of galaxies with these half-light radii, shape (n,)."""
        larger, smaller = np.maximum(one, other), np.minimum(one, other)
        reach = side / 2 if self.within is None else min(side / 2, self.within)
        most = np.minimum(self.most * (larger if self.most_of == "larger" else smaller), reach)
        # Two galaxies in one place would be one.
        most = np.maximum(most, 1.0)
        least = self.least * larger
        return np.maximum(np.where(least < most, least, 0.8 * most), 1.0), most


PAPER = Rule()
"""Section 2.2, and the distances of the conclusions: 0.5 to 4 radii, as far as half the image."""
PACKAGE = Rule(least=1.0, most=4.0, most_of="smaller")
"""What the public package does."""
RULES: Mapping[str, Rule] = {"paper": PAPER, "package": PACKAGE}


@dataclass(frozen=True)
class Blends:
    """n blends of k galaxies each, the central one first, then the companions by brightness.

    Attributes
    ----------
    members : int64 ndarray, shape (n, k)
        Rows of the parents; less than 0 where a galaxy is left out, see `left_alone`.
    shift : int64 ndarray, shape (n, k, 2)
        How far each is moved along y and x, pixels; 0 for the central one.
    turn : int64 ndarray, shape (n, k)
        Which of the eight turns and mirror images of the square, 0 to 7; 0 leaves it as it is.
    """

    members: Int
    shift: Int
    turn: Int

    def __len__(self) -> int:
        return len(self.members)

    def distances(self) -> Float:
        """From the central galaxy to each, pixels, shape (n, k)."""
        found: Float = np.hypot(self.shift[..., 0], self.shift[..., 1])
        return found


def left_alone(blends: Blends, share: float, rng: np.random.Generator) -> Blends:
    """A share of the blends without their companions; these become -1 less their numbers.

    The number is kept, since a stamp of a real galaxy brings noise that a lone one must have too.
    """
    members = blends.members.copy()
    alone = rng.random(len(blends)) < share
    members[alone, 1:] = -1 - members[alone, 1:]
    shift = blends.shift.copy()
    shift[alone, 1:] = 0
    return Blends(members, shift, blends.turn)


def split(n: int, shares: tuple[float, ...], seed: int) -> list[Int]:
    """Numbers 0 to n - 1 in parts that share none: those of the shares, then the rest.

    Examples
    --------
    >>> [len(part) for part in split(10, (0.2, 0.3), seed=0)]
    [2, 3, 5]
    """
    order = np.random.default_rng(seed).permutation(n)
    ends = np.round(np.cumsum(shares) * n).astype(int)
    return [np.sort(part) for part in np.split(order, ends)]


def choose(
    parents: Parents,
    pool: Int,
    n: int,
    rule: Rule = PAPER,
    *,
    galaxies: int = 2,
    rng: np.random.Generator,
) -> Blends:
    """Draw n blends of the galaxies in `pool`, which are rows of the parents.

    Raises
    ------
    ConfigError
        If a blend is to have fewer than two galaxies.
    InputError
        If the pool holds no galaxies that the rule lets blend.
    """
    if galaxies < 2:
        raise ConfigError(f"a blend has two galaxies at least, not {galaxies}")
    partners = _Partners(parents, pool, rule)
    members = np.empty((n, galaxies), np.int64)
    shift = np.zeros((n, galaxies, 2), np.int64)
    todo = np.arange(n)
    for _ in range(PAIRS):
        if not len(todo):
            break
        members[todo] = partners.draw(len(todo), galaxies, rng)
        shift[todo], placed = _shifts(parents, members[todo], rule, rng)
        todo = todo[~placed]
    if len(todo):
        raise InputError(
            f"the rule of blends finds no place for the galaxies of {len(todo)} of {n} blends on "
            f"{parents.side} x {parents.side} pixels in {PAIRS} sets of {galaxies}: allow smaller "
            "distances, or give larger stamps"
        )
    turn = rng.integers(0, 8, members.shape) if rule.turn else np.zeros_like(members)
    return Blends(members, shift, turn)


class _Partners:
    """Draws galaxies of one PSF whose magnitudes the rule lets blend."""

    def __init__(self, parents: Parents, pool: Int, rule: Rule) -> None:
        self.magnitude = magnitude = parents.magnitude
        psf = np.nan_to_num(parents.psf)
        # Sorted by PSF and magnitude, the partners of a galaxy are neighbours in the list.
        self.order = pool[np.lexsort((magnitude[pool], psf[pool]))]
        sort, mag = psf[self.order], magnitude[self.order]
        step = 1e3 * np.unique(sort, return_inverse=True)[1]
        key = step + mag
        self.first = np.searchsorted(key, key - rule.magnitudes, side="right")
        self.last = np.searchsorted(key, key + rule.magnitudes, side="left")
        self.central = np.flatnonzero(self.last - self.first > 1)

    def draw(self, n: int, galaxies: int, rng: np.random.Generator) -> Int:
        """Rows of the parents, all different within a blend, shape (n, galaxies).

        The companions are in the order of their brightness, the brightest first.
        """
        others = self.last[self.central] - self.first[self.central] - 1
        able = self.central[others >= galaxies - 1]
        if not len(able):
            raise InputError(
                f"none of {len(self.order)} galaxies has {galaxies - 1} companions that the rule "
                "of blends allows: give more galaxies, or a larger difference of magnitudes"
            )
        places = np.empty((n, galaxies), np.int64)
        places[:, 0] = rng.choice(able, n)
        first, last = self.first[places[:, 0]], self.last[places[:, 0]]
        for k in range(1, galaxies):
            again = np.arange(n)
            while len(again):
                places[again, k] = rng.integers(first[again], last[again])
                same = (places[again, :k] == places[again, k : k + 1]).any(axis=1)
                again = again[same]
        members = np.asarray(self.order[places])
        # Nothing in an image says which companion is the second: without an order that a network
        # can see, it would answer with the mean of both.
        brightest = np.argsort(self.magnitude[members[:, 1:]], axis=1, kind="stable")
        members[:, 1:] = np.take_along_axis(members[:, 1:], brightest, axis=1)
        return members


def _shifts(
    parents: Parents, members: Int, rule: Rule, rng: np.random.Generator
) -> tuple[Int, Bool]:
    """Shifts of n blends, shape (n, k, 2), and which blends found places for all."""
    n, galaxies = members.shape
    radius = parents.radius[members]
    shift = np.zeros((n, galaxies, 2), np.int64)
    placed = np.ones(n, bool)
    for k in range(1, galaxies):
        least, most = rule.limits(radius[:, 0], radius[:, k], parents.side)
        todo = np.arange(n)
        for _ in range(TRIES):
            reach = np.floor(most[todo]).astype(np.int64)[:, None]
            drawn = rng.integers(-reach, reach + 1, (len(todo), 2))
            distance = np.hypot(drawn[:, 0], drawn[:, 1])
            good = (distance >= least[todo]) & (distance <= most[todo])
            for j in range(1, k):
                apart = np.linalg.norm(drawn - shift[todo, j], axis=1)
                good &= apart >= rule.limits(radius[todo, j], radius[todo, k], parents.side)[0]
            shift[todo[good], k] = drawn[good]
            todo = todo[~good]
        placed[todo] = False
    return shift, placed


def add(
    parents: Parents,
    blends: Blends,
    *,
    sigma: Float | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Images, Bool]:
    """The blends' images and the masks of their galaxies.

    Parameters
    ----------
    parents : Parents
        What the blends are made of.
    blends : Blends
        Which of them, and where.
    sigma : float64 ndarray, shape (n, band), optional
        Standard deviation of Gaussian noise to add, nJy a pixel; none by default, since stamps of
        real galaxies bring their own.
    rng : numpy.random.Generator, optional
        Of that noise.

    Returns
    -------
    images : float32 ndarray, shape (n, band, side, side)
        The sum of the stamps, each moved with nothing moved in. Of a companion that is left out
        it has the noise, unless noise is added: `background`.
    masks : bool ndarray, shape (n, k, side, side)
        Where each galaxy would be detected alone.

    Raises
    ------
    InputError
        If two galaxies of a blend have one centre.
    """
    n, galaxies = blends.members.shape
    for k in range(1, galaxies):
        for j in range(k):
            there = (blends.members[:, [j, k]] >= 0).all(axis=1)
            if (there & (blends.shift[:, k] == blends.shift[:, j]).all(axis=1)).any():
                raise InputError(
                    "two galaxies of a blend have one centre: no mask or flux could be told to be "
                    "that of either; move one of them"
                )
    side = parents.side
    images = np.zeros((n, len(parents.bands), side, side), np.float32)
    masks = np.zeros((n, galaxies, side, side), bool)
    for row in range(n):
        for k, member in enumerate(blends.members[row]):
            turn, (dy, dx) = int(blends.turn[row, k]), blends.shift[row, k]
            if member < 0:
                if sigma is None and rng is not None:
                    images[row] += turned(background(parents, -1 - int(member), rng), turn)
                continue
            target, source = _overlap(int(dy), int(dx), side)
            images[row][:, *target] += turned(parents.images[member], turn)[:, *source]
            masks[row, k][target] = turned(parents.mask[member], turn)[source]
    if sigma is not None and rng is not None:
        for band in range(images.shape[1]):
            noise = rng.standard_normal((n, side, side), dtype=np.float32)
            images[:, band] += noise * sigma[:, band, None, None].astype(np.float32)
    return images, masks


def background(parents: Parents, member: int, rng: np.random.Generator) -> Images:
    """A parent's stamp without its galaxy: that is filled as the paper fills neighbours.

    Shape (band, side, side). An isolated galaxy gets it, so that no network tells blends of real
    stamps, which have the noise of several, by their noise.
    """
    stamp: Images = parents.images[member].copy()
    hidden = binary_dilation(parents.mask[member], iterations=DILATION)
    empty = np.flatnonzero(~hidden)
    if not len(empty):
        return np.zeros_like(stamp)
    drawn = rng.choice(empty, int(hidden.sum()))
    stamp[:, hidden] = stamp.reshape(len(stamp), -1)[:, drawn]
    return stamp


def turned(stamp: NDArray[np.generic], turn: int) -> NDArray[np.generic]:
    """One of the eight turns and mirror images of the last two axes; index side // 2 stays.

    A stamp of even side has no central pixel: it is mirrored about index side // 2, and its first
    line stays the first.
    """
    if turn & 4:
        stamp = stamp.swapaxes(-1, -2)
    even = stamp.shape[-1] % 2 == 0
    for bit, axis in ((1, -1), (2, -2)):
        if turn & bit:
            stamp = np.flip(stamp, axis)
            if even:
                stamp = np.roll(stamp, 1, axis)
    return stamp


def _overlap(dy: int, dx: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a stamp that is moved by (dy, dx) comes to lie, and which part of it that is."""

    def along(step: int) -> tuple[slice, slice]:
        kept = max(0, side - abs(step))
        target, source = max(step, 0), max(-step, 0)
        return slice(target, target + kept), slice(source, source + kept)

    (y, own_y), (x, own_x) = along(dy), along(dx)
    return (y, x), (own_y, own_x)
