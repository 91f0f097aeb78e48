"""The report of a published release: one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveyproc import schemas
from surveyproc.catalogs import hats
from surveyproc.catalogs.labels import match_catalog, read_labels
from surveyproc.config import SurveyConfig
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.releases.release import current_release
from surveyproc.report import figures
from surveyproc.report.summary import summarise
from surveyproc.store.storage import Store, store_error

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b2a41; background: #f6f8fa; margin: 0; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.sub { color: #5b6b7f; margin: .2rem 0 1.4rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; }
.tile { background: #fff; border: 1px solid #dde4ea; border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: #5b6b7f; font-size: .85rem; }
figure { background: #fff; border: 1px solid #dde4ea; border-radius: .6rem; margin: 0; }
figure { padding: .8rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: .8rem; }
img { max-width: 100%; display: block; margin: auto; }
table { border-collapse: collapse; background: #fff; width: 100%; font-size: .92rem; }
td, th { border-bottom: 1px solid #dde4ea; padding: .35rem .7rem; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { background: #e8edf2; border-radius: .3rem; padding: .1rem .35rem; overflow-wrap: anywhere; }
"""

ERRORS = (
    "Where background_errors is set, neither weights nor a gain (images.gain) are known: the "
    "errors are the noise of the background alone, too small for bright objects."
)


def write_report(config: SurveyConfig, out: Path | None = None) -> dict[str, Any]:
    """Write the page of the published release.

    Parameters
    ----------
    config : SurveyConfig
        The survey.
    out : Path, optional
        The file to write, and nothing under the root; by default `runs/<run>/report.html` there.

    Returns
    -------
    dict
        `report`: where the page is; `release`: what it shows.

    Raises
    ------
    InputError
        If nothing is published.
    StoreError
        If the page cannot be written.
    """
    store = Store(config.root)
    current = current_release(store, config.survey.name)
    key = str(current["path"])
    names = hats.leaf_schema(store, f"{key}/{hats.leaf_keys(store, key)[0]}").names
    flags = ["catalog_flag", *(f"{product}_flag" for product in current["flags"])]
    # The source's own columns follow the last flag.
    names = names[: max(map(names.index, flags)) + 1]
    redshifts = schemas.redshift_columns(names)
    bands = [band for band in config.bands if f"flux_{band}" in names]
    summary = summarise(store, key, redshifts, bands, flags)
    sections = [
        _tiles(current),
        "<h2>On the sky</h2>" + _figure(figures.sky_map(summary), "sky map"),
        "<h2>Distributions</h2><div class='row'>"
        + (_figure(figures.redshift_histogram(summary), "N(z)") if redshifts else "")
        + (_figure(figures.magnitude_histogram(summary), "number counts") if bands else "")
        + "</div>",
    ]
    if config.truth is not None and redshifts:
        values, targets = match_catalog(store, key, read_labels(config.truth, config), redshifts)
        known = targets["redshift"]
        sections.append(f"<h2>Against {len(known):,} known redshifts</h2>")
        sections += [_against_truth(name, values[name], known) for name in redshifts]
    sections += [_flag_table(current), _band_flag_table(current), _open_it(str(current["url"]))]
    page = _page(config.survey.name, current, "".join(sections))
    if out is None:
        target = f"runs/{current['release']}/report.html"
        store.put(target, page.encode())
        where = store.url_of(target)
    else:
        where = str(out)
        try:
            out.write_text(page, encoding="utf-8")
        except OSError as error:
            raise store_error(error, where) from error
    return {
        "report": where,
        "release": current["release"],
        "rows": current["rows"],
        "rejected": current["rejected"],
    }


def _page(survey: str, current: dict[str, Any], body: str) -> str:
    title = html.escape(f"{survey}: release {current['release']}")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style><main><h1>{html.escape(survey)}</h1>"
        f"<p class='sub'>release {html.escape(str(current['release']))}, published "
        f"{html.escape(str(current['published']))}</p>{body}</main></html>\n"
    )


def _against_truth(name: str, predicted: NDArray[Any], known: NDArray[Any]) -> str:
    """One column of redshifts beside the known ones; nothing if it has none of these objects."""
    good = np.isfinite(predicted)
    if not good.any():
        return ""
    figure = figures.redshift_against_truth(predicted[good], known[good])
    return (
        f"<h3><code>{html.escape(name)}</code></h3><div class='row'>"
        + _figure(figure, f"{name} against known redshifts")
        + _metrics_table(redshift_metrics(predicted, known))
        + "</div>"
    )


def _tiles(current: dict[str, Any]) -> str:
    cells = [
        (f"{current['rows']:,}", "objects"),
        (f"{current['partitions']:,}", "partitions"),
        (f"{current['rows_per_second']:,.0f}", "objects a second and worker"),
        (f"{current['rejected']:,}", "source rows rejected"),
        (f"{current['duplicates']:,}", "rows with a duplicate id"),
    ]
    for product, counts in current["flags"].items():
        cells.append(
            (f"{100 * counts['any'] / max(current['rows'], 1):.1f} %", f"{product} flagged")
        )
    return (
        "<div class='tiles'>"
        + "".join(f"<div class='tile'><b>{value}</b><span>{html.escape(label)}</span></div>"
                  for value, label in cells)
        + "</div>"
    )  # fmt: skip


def _figure(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<figure><img alt='{html.escape(alt)}' src='data:image/png;base64,{data}'></figure>"


def _metrics_table(metrics: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{label}</td><td class='n'>{value}</td></tr>"
        for label, value in (
            ("matched objects", f"{metrics['n'] + metrics['n_missing']:,}"),
            ("without a redshift", f"{metrics['n_missing']:,}"),
            ("NMAD of dz = (z_phot - z) / (1 + z)", f"{metrics['nmad']:.4f}"),
            ("outliers, |dz| > 0.15", f"{100 * metrics['outlier_fraction']:.2f} %"),
            ("bias, mean dz", f"{metrics['bias']:+.4f}"),
        )
    )
    return f"<figure><table>{rows}</table></figure>"


def _flag_table(current: dict[str, Any]) -> str:
    descriptions = schemas.flag_descriptions()
    rows = "".join(
        f"<tr><td>{html.escape(product)}</td><td><code>{html.escape(name)}</code></td>"
        f"<td>{html.escape(descriptions[name])}</td><td class='n'>{count:,}</td>"
        f"<td class='n'>{100 * count / max(current['rows'], 1):.2f} %</td></tr>"
        for product, counts in current["flags"].items()
        for name, count in counts.items()
        if name != "any"
    )
    return (
        "<h2>Flags</h2><table><tr><th>product</th><th>flag</th><th>meaning</th>"
        f"<th class='n'>objects</th><th class='n'>share</th></tr>{rows}</table>"
    )


def _band_flag_table(current: dict[str, Any]) -> str:
    """Objects by flag column of a band, and by flag; nothing if no product has such columns."""
    columns = current.get("band_flags", {})
    if not columns:
        return ""
    found = [name for name in schemas.flags() if any(name in one for one in columns.values())]
    head = "".join(f"<th class='n'><code>{name}</code></th>" for name in ("any", *found))
    rows = "".join(
        f"<tr><td><code>{html.escape(column)}</code></td>"
        + "".join(f"<td class='n'>{counts.get(name, 0):,}</td>" for name in ("any", *found))
        + "</tr>"
        for column, counts in columns.items()
    )
    told = f"<p>{html.escape(ERRORS)}</p>" if "background_errors" in found else ""
    return f"<h3>Band by band</h3>{told}<table><tr><th>column</th>{head}</tr>{rows}</table>"


def _open_it(url: str) -> str:
    line = f"import lsdb; lsdb.open_catalog({url!r}).compute()"
    if "://" in url:
        # Told a plain `s3://` URL, hats takes the bucket for a public one.
        line = f"import lsdb, upath; lsdb.open_catalog(upath.UPath({url!r})).compute()"
    return f"<h2>Open it</h2><p><code>{html.escape(line)}</code></p>"
