"""Modalities: the subsets of bands that a multimodal network processes in parallel.

Ait Ouahmed et al. 2023, section 4.1 and Table C.2: bands are sorted by wavelength; the size of a
modality is its number of bands, its order the distance of neighbours among them (1: adjacent).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surveyproc.errors import ConfigError

Modality = tuple[int, ...]
"""Indices of bands, ascending in wavelength."""


def select_modalities(
    n_bands: int,
    size: int,
    orders: Sequence[int] = (1,),
    *,
    all_bands: bool = False,
    single_bands: bool = False,
) -> tuple[Modality, ...]:
    """All modalities of one size and of the given orders, each once.

    Order o gives the bands i, i + o, i + 2o, ... from every possible start i, which makes
    N - o (s - 1) modalities of s bands. The paper's baseline is the one modality of size N.

    Parameters
    ----------
    n_bands : int
        Number N of bands.
    size : int
        Bands s of a modality.
    orders : sequence of int, optional
        Orders, each >= 1.
    all_bands : bool, optional
        Add the modality of all bands (section 7.3).
    single_bands : bool, optional
        Add every band alone (section 7.4: nothing is lost when a larger modality is dropped).

    Raises
    ------
    ConfigError
        If size or order is below 1, or not a single modality fits.

    Examples
    --------
    >>> select_modalities(4, 2, [1, 2])
    ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3))
    """
    if size < 1 or any(order < 1 for order in orders):
        raise ConfigError(
            f"modalities: size ({size}) and orders ({list(orders)}) must be 1 or more"
        )
    found = [
        tuple(range(start, start + order * size, order))
        for order in orders
        for start in range(n_bands - order * (size - 1))
    ]
    if not found:
        raise ConfigError(
            f"modalities: none of {size} bands and orders {list(orders)} fits {n_bands} bands"
        )
    if all_bands:
        found.append(tuple(range(n_bands)))
    if single_bands:
        found += [(band,) for band in range(n_bands)]
    return tuple(dict.fromkeys(found))


def modality_name(modality: Modality, bands: Sequence[str]) -> str:
    """Name of a modality as in Table C.2.

    Examples
    --------
    >>> modality_name((0, 2), "ugr")
    'u_r'
    """
    return "_".join(bands[index] for index in modality)


def draw_kept(n_modalities: int, generator: torch.Generator, most: int = 5) -> Tensor:
    """Which modalities a training batch keeps: modality dropout (section 7.4).

    The number dropped is uniform on 0, 1, ..., `most`, and so is their choice.

    Parameters
    ----------
    n_modalities : int
        Modalities of the network.
    generator : torch.Generator
        Source of the draws, on the CPU.
    most : int, optional
        Most modalities dropped; the paper's 5 by default.

    Returns
    -------
    bool Tensor, shape (n_modalities,)
        False where dropped.

    Raises
    ------
    ConfigError
        If `most` would drop every modality.
    """
    if not 0 <= most < n_modalities:
        raise ConfigError(f"modality dropout: cannot drop up to {most} of {n_modalities}")
    dropped = int(torch.randint(most + 1, (), generator=generator))
    kept = torch.ones(n_modalities, dtype=torch.bool)
    kept[torch.randperm(n_modalities, generator=generator)[:dropped]] = False
    return kept
