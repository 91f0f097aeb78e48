"""The sections of survey.toml as typed, validated models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from surveyproc.store.urls import is_web, public_url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Band = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,31}$")]

Table = Annotated[str | int, Field(union_mode="left_to_right")]
TABLE = (
    "Which table of a FITS file or VOTable that holds several: name of the HDU or its index (the "
    "primary one is 0), name, ID or number (from 0) of the VOTable's table. By default the one "
    "that has the columns."
)

TOLERANCE = 1e-6
"""Relative change below which two floats of two releases count as equal: ten float32 steps."""


def _without_login(url: str) -> str:
    if public_url(url) != url:
        raise ValueError(
            "this URL holds a user name, password or signature, which would end up in records: "
            "take it out; credentials come from the environment, a profile or the machine"
        )
    return url


def _writable(url: str) -> str:
    if is_web(url):
        raise ValueError("a web server cannot be written to: name a folder or an object store")
    return url


# What a model is called: `name`, `name@version`, or the path or URL of a package's folder.
ModelReference = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,1024}$"), AfterValidator(_without_login)
]


def increasing(limits: list[float]) -> list[float]:
    """Two limits as they are; ValueError if the lower one does not come first."""
    if not limits[0] < limits[1]:
        raise ValueError(f"the lower one comes first, not {limits}")
    return limits


Factors = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]],
    AfterValidator(increasing),
]


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SurveySection(Section):
    """Who we are and where everything written lies."""

    name: Name = Field(description="Name of the survey; also the name of its release.")
    root: Annotated[str, AfterValidator(_without_login), AfterValidator(_writable)] = Field(
        description="Path or URL under which everything is written."
    )


def _as_columns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LabelTableSection(Section):
    """A table of what is known of some objects, matched to the catalog."""

    source: str = Field(description="Any catalog format; relative path or URL.")
    table: Table | None = Field(None, description=TABLE)
    ra: str = Field("ra", description="Column with the right ascension; degrees, or its own unit.")
    dec: str = Field("dec", description="Column with the declination; degrees, or its own unit.")
    select: str | None = Field(None, description="Boolean column: only rows where it is true.")
    radius: float = Field(1.0, gt=0, le=3600, description="Largest distance of a match, arcsec.")


class LabelsSection(LabelTableSection):
    """A table of known redshifts, matched to the catalog on the sky."""

    redshift: str = Field(description="Column with the redshift.")
    classes: str | None = Field(
        None, description="Column with the class, against which the report holds those of networks."
    )


class TrainingSection(LabelTableSection):
    """Labels of a product's network, with its own photometry or with the survey's."""

    source: str = Field(
        "",
        description="Any catalog format; relative path or URL. Only images that are a cube of "
        "blends go without.",
    )
    redshift: str | None = Field(None, description="Column with the redshift, if it is learned.")
    targets: dict[
        str,
        Annotated[
            list[str],
            BeforeValidator(_as_columns, json_schema_input_type=str | list[str]),
            Field(min_length=1),
        ],
    ] = Field(
        default_factory=dict,
        description="What the tasks of the network learn from: a target to its label column, or "
        "to a list of them. Columns of classes may hold text.",
    )
    votes: Literal["galaxy_zoo_2"] | None = Field(
        None,
        description="The label table is one of votes with the columns of Galaxy Zoo 2 (Willett et "
        "al. 2013), and targets may name what they tell: five_classes, the class by their cuts; "
        "features and feature_votes, shares of the 34 features and votes for their questions.",
    )
    id: str | None = Field(
        None,
        description="Column with the source catalog's ids: labels are then matched by id, not on "
        "the sky, and need no positions. Not with magnitudes.",
    )
    images: str | None = Field(
        None,
        description="Folder with stamps (JPEG, PNG, FITS), one an object of the label table, or, "
        "without a source, a cube of `surveyproc blends`, which holds its own truth: the network "
        "learns from these instead of the survey's cutouts.",
    )
    file: str = Field(
        "file",
        description="Column of the label table with the stamps' names, also without an ending.",
    )
    resize: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="Side in pixels that JPEG and PNG stamps are resampled to; without it all must "
        "have one size.",
    )
    magnitudes: dict[str, str] = Field(
        default_factory=dict,
        description="Model band to AB magnitude column of the label table. If given, the network "
        "learns from these; else from the survey's photometry of the matched objects.",
    )
    magnitude_errors: dict[str, str] = Field(
        default_factory=dict, description="Model band to column with the magnitude's error."
    )
    bands: list[str] = Field(
        default_factory=list,
        description="Bands of the survey, or of the stamps, that the network gets; all if empty.",
    )
    redshifts: Annotated[list[float], AfterValidator(increasing)] = Field(
        [0.0, 20.0],
        min_length=2,
        max_length=2,
        description="Labels between these two are trained with; others are left out.",
    )
    start: ModelReference | None = Field(
        None,
        description="A package whose weights the network begins with, layer by layer of the same "
        "name; its other layers begin at random.",
    )
    held_out_share: float = Field(
        0.15,
        ge=0,
        lt=0.9,
        description="Share of the labels, by whole sky pixels (stamps: by object), whose loss "
        "chooses the best epoch; with 0 all are trained with and the last weights count. With "
        "folds each of them is held out by its own networks instead.",
    )
    test_share: float = Field(
        0.0,
        ge=0,
        lt=0.9,
        description="Share of the labels, by whole sky pixels (stamps: by object), that neither "
        "weights nor the choice of the best epoch depend on; the finished model is measured on "
        "them.",
    )
    dropped_rows: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the objects that lose bands at random in an epoch, which teaches the "
        "network to do without; 0 makes a model that refuses a survey without one of its bands. By "
        "default what suits the network.",
    )
    dropped_bands: float | None = Field(
        None, gt=0, lt=1, description="Share of the bands that such an object loses."
    )
    epochs: int = Field(30, ge=1, description="Epochs of each learning-rate stage.")
    batch_size: int = Field(64, ge=1, description="Objects a step, over all workers.")
    workers: int = Field(
        1,
        ge=1,
        description="Processes that share the gradients of a single network; more than one need "
        "Ray. Of several networks each has one process.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, split and shuffling.")
    learning_rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=list,
        description="One for each stage; by default those that suit the network.",
    )
    folds: int = Field(
        1,
        ge=1,
        description="Parts of the sky (stamps: of the objects), each held out by other networks: "
        "k-fold cross-validation.",
    )
    members: int = Field(
        1,
        ge=1,
        description="Networks of each fold, which differ by their seed. All networks are trained "
        "in parallel; the PDF is their mean.",
    )
    patience: int | None = Field(
        None, ge=1, description="End a stage after so many epochs without a lower validation loss."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the networks' layers in training."
    )
    accumulate: int = Field(1, ge=1, description="Parts in which a step's gradients are computed.")
    shift: int = Field(
        2,
        ge=0,
        description="Largest shift of a cutout in training, pixels; by default 0 for networks of "
        "blends, whose central galaxy is in the centre.",
    )
    zoom: float | None = Field(
        None,
        ge=1,
        le=4,
        description="Largest factor by which an axis of a cutout is enlarged in training; by "
        "default what suits the network.",
    )
    dimming: Factors | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Bounds of a factor of brightness in training, [0.6, 1.0] say: for objects "
        "fainter than those with labels.",
    )
    shrinking: Factors | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Bounds of a factor of size in training, [0.5, 1.0] say: for objects smaller "
        "than those with labels.",
    )
    turning: float | None = Field(
        None,
        ge=0,
        le=180,
        description="Largest angle by which a cutout is turned in training, degrees, beside turns "
        "by right angles; by default what suits the network.",
    )

    @model_validator(mode="after")
    def _labelled(self) -> TrainingSection:
        if "source" not in self.model_fields_set and self.images is None:
            raise ValueError("key `source` is missing: name the label table")
        return self

    @property
    def of_blends(self) -> bool:
        """Whether `images` is a cube of blends."""
        return self.images is not None and not self.source


class ProductSection(Section):
    """One product of the run; each kind of product adds its own keys."""

    name: Name = Field(
        description="Name of the product, and of its flag column; it begins with the kind."
    )
    kind: Name | None = Field(None, description="Kind of the product, if its name does not say it.")


class ScaledSection(Section):
    """Cutouts as wide as objects are, on as many pixels for all."""

    column: Name = Field(
        description="Column of the catalog, or of an earlier product, with each object's size "
        "in arcsec, a half-light radius say."
    )
    times: float = Field(
        gt=0,
        description="Side of a cutout in that size; arcsec a pixel times that if the column counts "
        "pixels.",
    )
    largest: int = Field(
        256,
        ge=8,
        le=2048,
        description="Pixels of the survey that a cutout has at most on a side: of objects that "
        "would have more the middle is seen, and outside_training_range set.",
    )


class ModelSection(ProductSection):
    """A product that a network computes."""

    model: ModelReference = Field(
        description="A package under <root>/models (name or name@version), the path or URL of a "
        "package's folder (anything with a slash), or a registered network to train.",
    )
    bands: dict[str, str] = Field(
        default_factory=dict,
        description='Model band to survey band where the names differ, or to "" for none.',
    )
    architecture: str | None = Field(
        None, description="The registered network to train, if `model` is another name for it."
    )
    architecture_settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the registered network to train."
    )
    fluxes: Name | None = Field(
        None,
        description="An earlier product, of kind deblend say, whose fluxes the network reads, and "
        "is trained with, where that has some in all bands; flux_<band> elsewhere.",
    )
    blends: Name | None = Field(
        None,
        description="An earlier product of kind blend_probability: the flag unrecognised_blend of "
        "an object is among this one's flags too.",
    )
    scaled: ScaledSection | None = Field(
        None,
        description="Cutouts as wide as objects are, resampled to the network's pixels, also in "
        "training. By default all have the same width on the sky.",
    )
    training: TrainingSection | None = Field(None, description="How to train the model.")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "network" in given:
            raise ValueError("key `network` is called `architecture_settings` now")
        return given


class BlendModelSection(ModelSection):
    """A product of a network of blends, to which pixels have one size."""

    @field_validator("scaled")
    @classmethod
    def _as_they_are(cls, given: ScaledSection | None) -> ScaledSection | None:
        if given is not None:
            raise ValueError("cutouts for networks of blends are not scaled: leave it out")
        return given


class GatesSection(Section):
    """What a release must satisfy to be published."""

    max_null_share: float = Field(
        0.5, ge=0, le=1, description="Largest share of nulls in any product column."
    )
    max_out_of_range_share: float = Field(
        0.0, ge=0, le=1, description="Largest share of values outside a column's declared range."
    )
    max_quarantined_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest share of objects in quarantined units: those that failed every "
        "attempt, whose products are null.",
    )


class NightlySection(Section):
    """What a night's release must satisfy beside the last one, and how many are kept."""

    max_rows_lost: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of the last release's rows, by their ids, and of its matches "
        "in the [truth] table, that may be gone.",
    )
    max_rows_gained: float = Field(
        0.5, ge=0, description="Most new rows, as a share of the last release's."
    )
    max_share_growth: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Most that the share of a column's nulls, of a product's flag, or of rows that "
        "share their id, may grow.",
    )
    max_drift: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest Kolmogorov-Smirnov distance between a product column's values and "
        "those of the last release.",
    )
    max_flux_shift: float = Field(
        0.03,
        ge=0,
        description="Largest shift of the fluxes of one tile in one column: by how much the median "
        "ratio to the last release, of at least 14 bright objects (20 sigma), may differ from 1.",
    )
    max_metric_growth: float = Field(
        0.1,
        ge=0,
        description="Most that NMAD and outlier fraction on the [truth] table may grow, as a share "
        "of the last release's value; two of its standard errors are always allowed.",
    )
    keep_releases: int = Field(
        3, ge=2, description="Published releases to keep; readers may still be using older ones."
    )


class RunSection(Section):
    """How the work is spread."""

    place: Literal["auto", "here", "ray", "apart"] = Field(
        "auto",
        description="Where work runs: in the command's own process; on Ray; on Ray, units read by "
        "some processes and computed by others (apart); or as their size and the cluster's GPUs "
        "say.",
    )
    networks: int | None = Field(
        None,
        ge=1,
        description="Processes that compute what others read; as many as GPUs if absent.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Worker processes, as many as CPUs if absent; in one process, at most four "
        "threads.",
    )
    niceness: int = Field(
        0, ge=0, le=19, description="Of the worker processes of a Ray that the command starts."
    )
    attempts: int = Field(3, ge=1, description="Failed attempts after which a unit is quarantined.")
    address: str = Field("local", description='Ray address; "local" starts and stops its own.')
