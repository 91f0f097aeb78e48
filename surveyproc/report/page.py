"""The report of a published release: one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from surveyproc.catalogs import hats
from surveyproc.errors import store_error
from surveyproc.releases.release import current_release
from surveyproc.report.sections.base import Section, Shown
from surveyproc.report.sections.choice import choose
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


@dataclass(frozen=True)
class Reported:
    """A page that was written.

    Attributes
    ----------
    report : str
        Where it is.
    release : str
        The release that it shows.
    rows, rejected : int
        Objects of it, and rows of the source beside the catalog.
    """

    report: str
    release: str
    rows: int
    rejected: int


def write_report(survey: Survey, out: Path | None = None) -> Reported:
    """Write the page of the published release.

    Parameters
    ----------
    survey : Survey
        The survey.
    out : Path, optional
        The file to write, and nothing under the root; by default `runs/<run>/report.html` there.

    Raises
    ------
    InputError
        If nothing is published.
    StoreError
        If the page cannot be written.
    """
    store = survey.store
    shown = _published(survey)
    current = shown.current
    places = choose(shown)
    gather(store, current.path, list(chain(*places.values())))
    page = render(shown, places)
    if out is None:
        target = layout.report(current.release)
        store.put(target, page.encode())
        where = store.url_of(target)
    else:
        where = str(out)
        try:
            out.write_text(page, encoding="utf-8")
        except OSError as error:
            raise store_error(error, where) from error
    return Reported(where, current.release, current.rows, current.rejected)


def _published(survey: Survey) -> Shown:
    store = survey.store
    current = current_release(store, survey.name)
    key = current.path
    names = hats.leaf_schema(store, f"{key}/{hats.leaf_keys(store, key)[0]}").names
    flags = ["catalog_flag", *(f"{product}_flag" for product in current.flags)]
    # The source's own columns follow the last flag.
    return Shown(survey.config, current, names[: max(map(names.index, flags)) + 1], flags)


def gather(store: Store, key: str, sections: Sequence[Section]) -> None:
    """Give the leaves of the catalog `key` to the sections, in as few passes as they need.

    Each leaf is read once a pass, with the columns that some section wants in it.
    """
    leaves = hats.leaf_keys(store, key)
    running = [section.gather() for section in sections]
    while wanted := [step for one in running if (step := next(one, None)) is not None]:
        names = list(dict.fromkeys(chain.from_iterable(columns for columns, _ in wanted)))
        for leaf in leaves:
            table = hats.read_leaf(store, f"{key}/{leaf}", names)
            for columns, add in wanted:
                add(table.select(columns))


def render(shown: Shown, places: dict[str, list[Section]]) -> str:
    """The page, from sections that have gathered what they show."""
    environment = Environment(
        loader=PackageLoader("surveyproc.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = _data_url
    sections = {
        place: [environment.get_template(one.template).render(one.values()) for one in those]
        for place, those in places.items()
    }
    page = environment.get_template("page.html")
    return page.render(survey=shown.config.survey.name, current=shown.current, **sections)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
