"""One pass, many products: a joint run beside the runs of each product, their sum and the longest.

    python benchmarks/joint.py FOLDER [--objects N] [--turns T] [--products NAME ...]
                               [--package PACKAGE ...]

FOLDER/survey is the simulated survey of `surveyproc demo` with its networks (trained for one epoch:
weights do not change times), `type_redshift` (OTELO's network of all bands) and `morphology` (the
small residual network of g, r, i cutouts of 64 pixels with classes and an embedding), both with
random weights. PACKAGE adds the network of another model package, as
`network_<name>`. Another survey with its store may lie there already.

The joint run computes all products from nothing. The separate ones compute one product each, in
order, and carry over the columns that it reads: they read its cutouts again, and read and write
leaves as any program would. All in this process (run.place = here), on copies of the ingested
store; medians of the turns, joint and separate alternating, in seconds of the whole verb and of a
core.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surveyproc import verbs
from surveyproc.config import SurveyConfig, load
from surveyproc.config.sections import ProductSection
from surveyproc.models.base import build
from surveyproc.models.features import fit_scaling
from surveyproc.models.package import load_package, save_package
from surveyproc.products.registry import build_products
from surveyproc.simulate import simulate
from surveyproc.survey import Survey
from surveyproc.verbs.demo import IMAGES

NETWORK = '\n[[products]]\nname = "{name}"\nmodel = "{model}"\n'
COLOURS = ("g", "r", "i")


def make_survey(folder: Path, objects: int, packages: list[str]) -> Path:
    """The survey, ingested, with its models."""
    path = folder / "survey" / "survey.toml"
    if path.exists():
        return path
    simulated = simulate(folder / "survey", objects=objects)
    text = simulated.config.read_text() + IMAGES
    text += NETWORK.format(name="type_redshift", model="types")
    text += NETWORK.format(name="morphology", model="looks")
    for package in packages:
        name = load_package(Survey(load(simulated.config)).store, package).name
        text += NETWORK.format(
            name=f"network_{name.replace('-', '_')}", model=Path(package).absolute()
        )
    simulated.config.write_text(text)
    survey = Survey(load(path, ["run.place=here"]))
    bands = tuple(survey.config.images.bands)
    flux = 10 ** np.random.default_rng(0).uniform(2, 5, (200, len(bands)))
    scaling = fit_scaling(flux, flux / 20, bands, errors=True)
    classes = {"class": ["early", "late", "edge_on"]}
    untrained(survey, "types", "otelo", {"classes": classes}, bands, scaling)
    untrained(survey, "looks", "morphology", {"classes": classes, "cutout": 64}, COLOURS, None)
    verbs.ingest(survey)
    trained = [one.name for one in survey.config.networks if one.training is not None]
    verbs.train(Survey(load(path, ["run.place=here", *(f"products.{one}.training.epochs=1"
                                                       for one in trained)])))  # fmt: skip
    return path


def untrained(
    survey: Survey, name: str, architecture: str, settings: Any, bands: Any, scaling: Any
) -> None:
    """A model package of random weights."""
    torch.manual_seed(0)
    weights = build(architecture, bands, settings).state_dict()
    save_package(
        survey.store, name, architecture=architecture, settings=settings, bands=bands,
        scaling=scaling, members=[weights],
    )  # fmt: skip


def only(config: SurveyConfig, sections: list[ProductSection]) -> Survey:
    return Survey(config.model_copy(update={"products": sections}))


def needed(config: SurveyConfig, name: str) -> list[ProductSection]:
    """The section of a product, after those whose columns it reads, directly or not."""
    products = {one.name: one for one in build_products(Survey(config))}
    wanted, found = [name], set[str]()
    while wanted:
        found.add(one := wanted.pop())
        reads = set(products[one].inputs.columns)
        wanted += [
            other
            for other, product in products.items()
            if other not in found and reads & {column.name for column in product.columns}
        ]
    return [section for section in config.products if section.name in found]


def fresh(config: SurveyConfig) -> None:
    """Remove every run and release."""
    store = Survey(config).store
    store.remove("releases")
    for name in store.names("runs"):
        if name.startswith("r"):
            store.remove(f"runs/{name}")


def timed(survey: Survey) -> tuple[float, float]:
    """Seconds of `run`, and of a core."""
    started, before = time.monotonic(), time.process_time()
    verbs.run(survey)
    return time.monotonic() - started, time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--products", nargs="+")
    parser.add_argument("--package", nargs="+", default=[])
    chosen = parser.parse_args()
    path = make_survey(chosen.folder, chosen.objects, chosen.package)
    copy = chosen.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path.parent, copy)
    whole = load(copy / "survey.toml", ["run.place=here"])
    names = chosen.products or [section.name for section in whole.products]
    asked = {one.name for name in names for one in needed(whole, name)}
    sections = [section for section in whole.products if section.name in asked]
    joint: list[tuple[float, float]] = []
    alone: dict[str, list[tuple[float, float]]] = {section.name: [] for section in sections}
    # The first turn imports what all others have imported, and does not count.
    for turn in range(chosen.turns + 1):
        fresh(whole)
        together = timed(only(whole, sections))
        fresh(whole)
        parts = {one.name: timed(only(whole, needed(whole, one.name))) for one in sections}
        if turn:
            joint.append(together)
            for name, part in parts.items():
                alone[name].append(part)
    shutil.rmtree(copy)
    print(f"{chosen.turns} turns; medians of seconds, and of seconds of a core")
    medians = {name: np.median(parts, axis=0) for name, parts in alone.items()}
    for name, (wall, core) in medians.items():
        print(f"  {name} alone: {wall:.2f}, {core:.2f}")
    whole_run = np.median(joint, axis=0)
    total, longest = np.sum(list(medians.values()), axis=0), np.max(list(medians.values()), axis=0)
    for name, pair in (("their sum", total), ("the longest", longest), ("joint", whole_run)):
        print(f"  {name}: {pair[0]:.2f}, {pair[1]:.2f}")
    print(
        f"  joint over sum {whole_run[0] / total[0]:.2f}, {whole_run[1] / total[1]:.2f}; over "
        f"longest {whole_run[0] / longest[0]:.2f}, {whole_run[1] / longest[1]:.2f}"
    )


if __name__ == "__main__":
    main()
