"""The library's front door: a survey opened from survey.toml, to look at and to work with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from surveyproc.config import load
from surveyproc.errors import ConfigError, InputError
from surveyproc.images.cube import Tile, read_tiles
from surveyproc.images.cutouts import CutoutReader
from surveyproc.releases import release as releases
from surveyproc.releases.record import Release
from surveyproc.run.unit import without_image
from surveyproc.schemas import flag
from surveyproc.store import layout
from surveyproc.survey import Survey

if TYPE_CHECKING:
    from surveyproc.products.base import Batch
    from surveyproc.verbs.similar import Similar


class OpenedSurvey(Survey):
    """A survey, its published catalogs and its pixels; what `surveyproc.open` gives.

    The verbs take it too: `surveyproc.verbs.run(survey)`.
    """

    def catalog(self, release: str = "current", columns: Sequence[str] | None = None) -> Any:
        """A release as an `lsdb.Catalog`; nothing is read yet.

        Parameters
        ----------
        release : str
            Its name, or "current" for the published one.
        columns : sequence of str, optional
            Those to load; by default the ones that the release names as its defaults.

        Raises
        ------
        InputError
            If there is no such release.
        """
        return self._opened(self._release(release).path, columns)

    def table(
        self, name: str, release: str = "current", columns: Sequence[str] | None = None
    ) -> Any:
        """Rows that a product wrote beside the catalog, as an `lsdb.Catalog`.

        Raises
        ------
        InputError
            If there is no such release, or it has no rows of such a table.
        """
        found = self._release(release)
        held = [one for one, rows in found.tables.items() if rows]
        if name not in held:
            raise InputError(
                f"release {found.release} has no table {name!r} with rows (there are: "
                f"{', '.join(held) or 'none'})"
            )
        return self._opened(layout.table(found.path, name), columns)

    def similar(
        self,
        object_id: int | str | None = None,
        *,
        position: tuple[float, float] | None = None,
        image: str | Path | None = None,
        n: int = 10,
        column: str | None = None,
    ) -> Similar:
        """Objects of the published release most like one; see `surveyproc.verbs.similar.similar`.

        `pandas.DataFrame(survey.similar(42).neighbours)` makes a table of them.
        """
        from surveyproc.verbs.similar import similar

        return similar(
            self, object_id=object_id, position=position, image=image, n=n, column=column
        )

    @cached_property
    def tiles(self) -> list[Tile]:
        """The ingested tiles, sorted by id.

        Raises
        ------
        InputError
            If the survey was not ingested.
        """
        return read_tiles(self.store, self.name)

    def cutouts(
        self, ra: ArrayLike, dec: ArrayLike, size: int, bands: Sequence[str] | None = None
    ) -> Batch:
        """Cutouts at positions, in their order.

        Parameters
        ----------
        ra, dec : float or array_like, shape (n,)
            Degrees, ICRS.
        size : int
            Side in pixels; the position's pixel has index size // 2.
        bands : sequence of str, optional
            All of [images] by default.

        Returns
        -------
        Batch
            `images`, float32, shape (n, band, y, x), nanojansky a pixel, NaN where there is none;
            `variance`, of the same shape, nanojansky squared, None if no tile has weights;
            `flags`, whose bit `no_image` says that no tile covers a position.

        Raises
        ------
        ConfigError
            If [images] has no such band.
        InputError
            If the survey was not ingested.
        """
        wanted = tuple(bands) if bands is not None else tuple(self.config.images.bands)
        if absent := [band for band in wanted if band not in self.config.images.bands]:
            raise ConfigError(
                f"cutouts: {absent[0]!r} is not in images.bands "
                f"({', '.join(self.config.images.bands)})"
            )
        ra, dec = (np.atleast_1d(np.asarray(one, np.float64)) for one in (ra, dec))
        batch = without_image(len(ra), len(wanted), size)
        reader = CutoutReader(self.store, self.tiles, wanted)
        # All that a tile covers come in one batch of so many.
        found = next(reader.batches(ra, dec, size, max(1, len(ra))), None)
        if found is None:
            return batch
        names = ("images", "offsets", "positions", "tiles", "tile_shape", "pixel_scale", "flags")
        for name in names:
            getattr(batch, name)[found.index] = getattr(found, name)
        assert batch.images is not None
        batch.images[(batch.flags & flag("corrupt_data")) != 0] = np.nan
        if found.variance is None:
            return batch
        variance = np.full_like(found.variance, np.nan, shape=(len(ra), *found.variance.shape[1:]))
        variance[found.index] = found.variance
        return replace(batch, variance=variance)

    def _release(self, name: str) -> Release:
        if name == "current":
            return releases.current_release(self.store, self.name)
        listed = {one.release: one for one in releases.list_releases(self.store, self.name)}
        if name not in listed:
            raise InputError(
                f"no finished release of {self.name} is called {name!r} (there are: "
                f"{', '.join(listed) or 'none'})"
            )
        return listed[name]

    def _opened(self, key: str, columns: Sequence[str] | None) -> Any:
        from lsdb import open_catalog  # type: ignore[attr-defined]
        from upath import UPath

        # Told a plain `s3://` URL, hats takes the bucket for a public one.
        url = UPath(self.store.url_of(key))
        return open_catalog(url, columns=None if columns is None else list(columns))


def open_survey(path: str | Path, overrides: Iterable[str] = ()) -> OpenedSurvey:
    """Open the survey that survey.toml describes; see `surveyproc.open`."""
    return OpenedSurvey(load(path, overrides))
