"""Kinds of products: which are installed, and the section of survey.toml that each brings.

A kind is a class that makes products, see `surveyproc.products.base.Kind`. Ours are named here;
those of other packages in the entry-point group `surveyproc.products`, the entry's name being the
kind and its object the class. None is imported before a survey asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from surveyproc.config.sections import ProductSection
from surveyproc.errors import ConfigError, near

ENTRY_POINTS = "surveyproc.products"
NETWORKS = "surveyproc.models"
"""The group of architectures, which the kinds with a model may name."""
OWN = {
    "blend_probability": "surveyproc.products.blend_probability:BlendProbabilityProduct",
    "deblend": "surveyproc.products.deblend:DeblendProduct",
    "morphology": "surveyproc.products.morphology:MorphologyProduct",
    "network": "surveyproc.products.network:NetworkProduct",
    "photometry": "surveyproc.products.photometry:AperturePhotometry",
    "photoz": "surveyproc.products.photoz:PhotozProduct",
    "type_redshift": "surveyproc.products.type_redshift:TypeRedshiftProduct",
}
_NEEDED = ("Section", "reads", "writes", "build")


def package_of(entry: EntryPoint) -> str:
    """Name of the package that brings a kind."""
    return entry.dist.name if entry.dist is not None else "surveyproc"


@cache
def installed() -> dict[str, list[EntryPoint]]:
    """Kind to what says that it is that kind: one entry, unless two packages fight for the name."""
    found = {kind: [EntryPoint(kind, value, ENTRY_POINTS)] for kind, value in OWN.items()}
    for entry in entry_points(group=ENTRY_POINTS):
        found.setdefault(entry.name, []).append(entry)
    return dict(sorted(found.items()))


def load_kind(kind: str) -> Any:
    """The class of a kind.

    Raises
    ------
    ConfigError
        If no such kind is installed, two packages bring it, or what is there cannot be imported or
        is no kind.
    """
    entries = installed().get(kind, [])
    if not entries:
        known = ", ".join(installed())
        raise ConfigError(
            f"products: {kind!r} is no installed kind of product; there are {known}"
            + near(kind, list(installed()))
        )
    if len(entries) > 1:
        packages = " and ".join(sorted(package_of(entry) for entry in entries))
        raise ConfigError(
            f"products: kind {kind!r} is brought by {packages}: uninstall all but one of them"
        )
    (entry,) = entries
    whence = f"products: kind {kind!r} of package {package_of(entry)} ({entry.value})"
    try:
        found = entry.load()
    except Exception as error:
        raise ConfigError(f"{whence} cannot be imported: {error!r}") from error
    lacking = [name for name in _NEEDED if not hasattr(found, name)]
    if lacking:
        raise ConfigError(f"{whence} is no kind of product: it has no {', '.join(lacking)}")
    return found


def kind_of(name: str, kind: str | None) -> str:
    """The kind of a product: as stated, else what its name begins with, up to a `_`.

    Of several kinds that it begins with the longest; if it begins with none, up to the first `_`.

    Examples
    --------
    >>> kind_of("photoz_images", None), kind_of("faint", "photometry")
    ('photoz', 'photometry')
    >>> kind_of("type_redshift_deep", None), kind_of("colour_map", None)
    ('type_redshift', 'colour')
    """
    if kind:
        return kind
    parts = name.split("_")
    starts = ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((start for start in starts if start in installed()), parts[0])


def section_class(name: str, kind: str | None) -> type[ProductSection]:
    """The class of the section of a product; raises as `load_kind`."""
    found: type[ProductSection] = load_kind(kind_of(name, kind)).Section
    return found


@dataclass(frozen=True)
class InstalledKind:
    """A kind of product that is installed.

    Attributes
    ----------
    kind, package : str
        Its name, and that of the package that brings it.
    reads, writes : str
        What it says of itself; empty if it is no use.
    error : str
        Why it is no use; empty if it is.
    """

    kind: str
    package: str
    reads: str = ""
    writes: str = ""
    error: str = ""


def listing() -> list[InstalledKind]:
    """Every installed kind of product."""
    found = []
    for kind, entries in installed().items():
        package = ", ".join(package_of(entry) for entry in entries)
        try:
            made = load_kind(kind)
            found.append(InstalledKind(kind, package, made.reads, made.writes))
        except ConfigError as error:
            found.append(InstalledKind(kind, package, error=str(error)))
    return found
