"""Verbs that draw what is known: surveys with truth, blends, the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from surveyproc.cli import text
from surveyproc.cli.common import AsJson, ray_aside, show
from surveyproc.errors import ConfigError


def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write the survey to.")],
    objects: Annotated[int, typer.Option(min=10, help="Objects to draw.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 1,
    pixel_scale: Annotated[float, typer.Option(help="Arcsec a pixel.")] = 0.25,
    as_json: AsJson = False,
) -> None:
    """Draw a small survey with known truth: FITS tiles, a catalog, a survey.toml."""
    from surveyproc.simulate import simulate as draw

    done = draw(out, objects=objects, seed=seed, pixel_scale=pixel_scale)
    show(done, as_json, [f"simulated survey: {done.config}"])


def blends(
    out: Annotated[str, typer.Option(metavar="URL", help="Root to write blends/ under.")],
    stamps: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ",
            help="`images` (n, band, y, x) and `bands` of isolated real galaxies; without it "
            "galaxies are drawn.",
        ),
    ] = None,
    bands: Annotated[
        str,
        typer.Option(
            help="Bands of the stamps, by commas, that of the selection first; or names of those "
            "of drawn galaxies, from blue to red."
        ),
    ] = "",
    unit: Annotated[float, typer.Option(help="nJy of one unit of the stamps' pixels.")] = 1.0,
    parents: Annotated[int, typer.Option(min=10, help="Galaxies to draw.")] = 2000,
    side: Annotated[int, typer.Option(min=16, help="Pixels on a side of drawn stamps.")] = 128,
    noise: Annotated[
        str,
        typer.Option(
            help="Noise of drawn blends, nJy a pixel (standard deviation); of several, by commas, "
            "each blend has one."
        ),
    ] = "1",
    fwhm: Annotated[
        str,
        typer.Option(
            help="Width of the PSF of drawn galaxies, pixels; of several, by commas, each is that "
            "of an equal share of them."
        ),
    ] = "3",
    rule: Annotated[
        Literal["paper", "package"],
        typer.Option(help="That of Boucaud et al. 2019, or of their public package."),
    ] = "paper",
    galaxies: Annotated[int, typer.Option(min=2, help="Galaxies of a blend.")] = 2,
    isolated: Annotated[float, typer.Option(min=0, max=0.99, help="Share of lone galaxies.")] = 0.0,
    within: Annotated[
        float | None, typer.Option(min=1, help="Largest distance of a companion, pixels.")
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Blends to train with.")] = 25_000,
    test: Annotated[int, typer.Option(min=1, help="Blends of galaxies of the test.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same blends.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Blend isolated galaxies, real or drawn, with known fluxes and masks, to train with."""
    from surveyproc.train.blends import BlendCounts
    from surveyproc.verbs.blends import blends as make

    done = make(
        out,
        stamps=stamps,
        bands=tuple(band for band in bands.split(",") if band),
        unit=unit,
        parents=parents,
        side=side,
        noise=_numbers(noise, "--noise"),
        fwhms=_numbers(fwhm, "--fwhm"),
        rule=rule,
        galaxies=galaxies,
        isolated=isolated,
        within=within,
        counts=BlendCounts(train, test),
        seed=seed,
    )
    show(done, as_json, text.blend_lines(done))


def _numbers(given: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in given.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {given}: {error}: give numbers, by commas") from error


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the survey and all its products.")],
    objects: Annotated[int, typer.Option(min=100, help="Objects to draw.")] = 3000,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    root: Annotated[
        str, typer.Option(metavar="URL", help="Where the products go, say s3://bucket/survey.")
    ] = "./store",
    as_json: AsJson = False,
) -> None:
    """Simulate a survey, then ingest, train, run, publish, evaluate and report it."""
    from surveyproc.verbs.demo import demo as shown

    with ray_aside():
        done = shown(out, objects=objects, seed=seed, root=root)
    lines = [
        f"catalog: {done.catalog} ({text.rows(done.metrics[0])})",
        f"report:  {done.report}",
        "z_phot against truth, galaxies not trained on:",
        *(f"  {one.column}: {text.metrics(one.all)}" for one in done.metrics),
        f"open it: python -c \"import lsdb; print(lsdb.open_catalog('{done.catalog}').compute())\"",
    ]
    show(done, as_json, lines)
