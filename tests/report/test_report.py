"""The report's sections on small leaves, and the page they make."""

import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surveyproc import schemas, sky
from surveyproc.catalogs import hats
from surveyproc.config import SurveyConfig
from surveyproc.evaluate.redshift import redshift_metrics
from surveyproc.releases.record import Release
from surveyproc.report.page import gather, write_report
from surveyproc.report.sections.base import Section, Shown
from surveyproc.report.sections.choice import choose
from surveyproc.report.sections.classes import Classes, KnownClasses
from surveyproc.report.sections.flags import Flags
from surveyproc.report.sections.known_redshifts import KnownRedshifts
from surveyproc.report.sections.number_counts import EDGES, NumberCounts
from surveyproc.report.sections.redshifts import Redshifts
from surveyproc.report.sections.sky_map import SkyMap
from surveyproc.schemas import AB_ZEROPOINT_NJY, Column
from surveyproc.store import layout
from surveyproc.store.storage import Store
from surveyproc.survey import Survey

KEY = layout.release("test", "r1")
ORDER = 6
# What a release recorded before there were kinds of products.
RECORD = {
    "release": "r1",
    "path": KEY,
    "rows": 1234567,
    "rejected": 3,
    "duplicates": 0,
    "partitions": 1,
    "rows_per_second": 1234.5,
    "products": {},
    "published": "2026-01-01",
    "flags": {},
}


class CountingStore(Store):
    """A store that notes what is read of which leaf."""

    def __init__(self, url):
        super().__init__(url)
        self.reads = []

    def read_table(self, key, columns=None):
        self.reads.append((key, columns))
        return super().read_table(key, columns)


def write_leaves(store, ra, dec, **columns) -> int:
    """A HATS catalog of these objects and columns under `KEY`; the number of leaves."""
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    pixels = sky.healpix29(ra, dec)
    order = np.argsort(pixels)
    own = {
        "object_id": np.arange(len(ra)),
        "ra": ra,
        "dec": dec,
        "_healpix_29": pixels,
        "catalog_flag": np.zeros(len(ra), np.int32),
    }
    table = pa.table(own | columns).take(pa.array(order))
    kinds = {name: np.dtype(table.schema.field(name).type.to_pandas_dtype()) for name in columns}
    names = {name: "string" if kind.kind == "O" else kind.name for name, kind in kinds.items()}
    declared = [*schemas.load("object"), *(Column(name, kind) for name, kind in names.items())]
    leaf_of = pixels[order] >> 2 * (29 - ORDER)
    for pixel in np.unique(leaf_of):
        key = f"{KEY}/{hats.leaf_key(ORDER, int(pixel))}"
        hats.write_leaf(store, key, table.filter(pa.array(leaf_of == pixel)), declared)
    return len(np.unique(leaf_of))


def survey(root, **more) -> SurveyConfig:
    return SurveyConfig.model_validate(
        {
            "survey": {"name": "test", "root": str(root)},
            "images": {"tiles": ["none"], "bands": ["g", "r"]},
            "catalog": {"source": "none"},
            **more,
        }
    )


def told(config, columns, flags=("catalog_flag",)) -> Shown:
    return Shown(config, Release(url="", **RECORD), list(columns), list(flags))


class Probe(Section):
    """Asks for one column after the other and notes how many rows it got of each."""

    def __init__(self, *columns):
        self.columns, self.rows = columns, []

    def gather(self):
        for column in self.columns:
            self.rows.append(0)
            yield [column], self.add

    def add(self, table):
        assert table.column_names == [self.columns[len(self.rows) - 1]]
        self.rows[-1] += table.num_rows

    def values(self):
        return {}


def test_sections_share_the_passes_and_the_columns(tmp_path):
    store = CountingStore(str(tmp_path))
    leaves = write_leaves(store, np.linspace(10, 14, 30), np.zeros(30))
    assert leaves > 2
    one, two, nothing = Probe("ra", "dec"), Probe("ra"), Probe()
    gather(store, KEY, [one, two, nothing])
    assert one.rows == [30, 30]
    assert two.rows == [30]
    assert nothing.rows == []
    assert [columns for _, columns in store.reads] == [["ra"]] * leaves + [["dec"]] * leaves
    assert len({key for key, _ in store.reads[:leaves]}) == leaves


def test_sky_map_across_ra_0(tmp_path):
    store = Store(str(tmp_path))
    ra = np.array([359.0, 359.5, 0.5, 1.0])
    write_leaves(store, ra, [-1, 0, 0, 1.0], photometry_flag=np.array([0, 0, 0, 4], np.int32))
    flags = ["catalog_flag", "photometry_flag"]
    section = SkyMap(told(survey(tmp_path), flags, flags))
    gather(store, KEY, [section])
    assert section.counts.sum() == 4
    assert section.half_width == pytest.approx(1.02, abs=0.01)
    assert (section.centre[0] + 180) % 360 - 180 == pytest.approx(0, abs=0.01)
    # Axes are north and east: what lies in the north-east is at the end of both.
    assert section.flagged[-1, -1] == section.flagged.sum() == 1
    assert section.counts[0, 0] == 1


def test_number_counts_of_fluxes_that_have_a_magnitude(tmp_path):
    store = Store(str(tmp_path))
    magnitude = np.array([20.1, 20.1, 24.5])
    flux = 10 ** (0.4 * (AB_ZEROPOINT_NJY - magnitude))
    flux = pa.array([*flux, -3.0, None], pa.float32())
    write_leaves(store, np.linspace(10, 14, 5), np.zeros(5), flux_r=flux)
    section = NumberCounts(told(survey(tmp_path), ["flux_r"]))
    gather(store, KEY, [section])
    assert list(section.counts) == ["r"]
    expected, _ = np.histogram(magnitude, EDGES)
    assert section.counts["r"].tolist() == expected.tolist()


def test_redshifts_of_all_leaves_lie_within_the_histogram(tmp_path):
    store = Store(str(tmp_path))
    a = pa.array([0.1, 0.2, None, 3.0], pa.float32())
    b = pa.array([0.1, 0.2, 0.3, 0.4], pa.float32())
    write_leaves(store, [10, 11, 12, 14.0], np.zeros(4), a_z_median=a, a_z_point=b, b_z_point=b)
    section = Redshifts(told(survey(tmp_path), ["a_z_median", "a_z_point", "b_z_point"]))
    gather(store, KEY, [section])
    assert {name: counts.sum() for name, counts in section.counts.items()} == {
        "a_z_median": 3,
        "b_z_point": 4,
    }
    assert section.edges[-1] == 3.0
    assert section.counts["a_z_median"][-1] == 1


def test_known_redshifts_of_models_that_have_some(tmp_path):
    store = Store(str(tmp_path / "store"))
    ra, known = np.linspace(10, 14, 8), np.linspace(0.1, 0.8, 8)
    write_leaves(
        store,
        ra,
        np.zeros(8),
        a_z_median=pa.array(known + 0.01, pa.float32()),
        b_z_median=pa.array([None] * 8, pa.float32()),
    )
    # Two labels belong to no object.
    truth = {"ra": [*ra, 20, 21], "dec": [0.0] * 10, "z": [*known, 1, 1]}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    source = {"source": str(tmp_path / "truth.parquet"), "redshift": "z"}
    config = survey(tmp_path / "store", truth=source)
    section = KnownRedshifts(told(config, ["a_z_median", "b_z_median"]))
    gather(store, KEY, [section])
    values = section.values()
    assert values["n"] == 8
    (model,) = values["models"]
    assert model["name"] == "a_z_median"
    predicted = (known + 0.01).astype(np.float32).astype(float)
    assert model["metrics"] == pytest.approx(redshift_metrics(predicted, known))


def test_classes_are_counted_and_held_against_known_ones(tmp_path):
    store = Store(str(tmp_path / "store"))
    p = np.array([0.9, 0.8, 0.3, 0.2, 0.6, np.nan], np.float32)
    best = pa.array(["E/S0", "E/S0", "late", "late", "E/S0", ""])
    ra, dec = np.linspace(10, 14, 6), np.zeros(6)
    columns = {"m_p_E_S0": pa.array(p), "m_p_late": pa.array(1 - p), "m_class": best}
    write_leaves(store, ra, dec, m_p_E_S0=columns["m_p_E_S0"], m_p_late=columns["m_p_late"],
                 m_class=pa.array(best.to_pylist()))  # fmt: skip
    labels = ["E/S0", "E/S0", "late", "E/S0", "merger", "late"]
    truth = {"ra": ra, "dec": dec, "z": np.full(6, np.nan), "kind": labels}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    source = {"source": str(tmp_path / "truth.parquet"), "redshift": "z", "classes": "kind"}
    release = told(survey(tmp_path / "store", truth=source), columns)
    counted, known = Classes(release), KnownClasses(release)
    gather(store, KEY, [counted, known])
    rows = counted.values()["models"][0]["rows"]
    assert rows == [("E/S0", 3), ("late", 2), ("unknown", 1)]
    (model,) = known.values()["models"]
    # Neither the merger nor the object without probabilities is judged.
    assert model["metrics"]["n"] == 4
    assert model["metrics"]["accuracy"] == 0.75
    assert model["metrics"]["area"] == pytest.approx(2 / 3)
    assert model["figure"].startswith(b"\x89PNG")


def test_a_page_has_the_sections_of_its_kinds(tmp_path):
    write = {"ra": [1.0], "dec": [2.0], "z": [0.5], "kind": ["late"]}
    pq.write_table(pa.table(write), tmp_path / "truth.parquet")
    truth = {"source": str(tmp_path / "truth.parquet"), "redshift": "z"}
    for more, judged in (
        ({}, [KnownRedshifts]),
        ({"classes": "kind"}, [KnownRedshifts, KnownClasses]),
    ):
        config = survey(tmp_path, truth=truth | more)
        current = Release(url="", **{**RECORD, "flags": {"type_redshift": {}}})
        shown = Shown(config, current, ["m_p_late", "m_class"], [])
        places = {place: list(map(type, sections)) for place, sections in choose(shown).items()}
        assert places["distributions"] == [Redshifts, Classes]
        assert places["last"][: len(judged) + 1] == [*judged, Flags]


def publish(store, **facts) -> None:
    store.put_json(layout.pointer("test"), RECORD | facts)


def words_of(page: str) -> str:
    """The page's text, without its tags and their images."""
    body = page.partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture
def photometry_page(tmp_path) -> str:
    """Of a release with photometry alone, under a root whose name is HTML."""
    root = tmp_path / "a<b>&amp;'"
    store = Store(str(root))
    write_leaves(
        store,
        np.linspace(10, 10.5, 9),
        np.zeros(9),
        flux_g=np.full(9, 100.0),
        photometry_flag=np.zeros(9, np.int32),
        mag_r=np.zeros(9),
        theirs_z_median=np.full(9, 0.5),
    )
    publish(
        store,
        flags={"photometry": {"any": 617284, "edge": 617284}},
        band_flags={
            "photometry_flag_g": {"any": 20, "background_errors": 20},
            "photometry_flag_r": {"any": 5, "edge": 5},
        },
    )
    return Path(write_report(Survey(survey(root))).report).read_text()


def test_the_page_of_a_release_with_photometry_alone(photometry_page):
    assert re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,', photometry_page) == [
        "sky map",
        "number counts",
    ]
    words = words_of(photometry_page)
    assert "1,234,567 objects 1 partitions 1,234 objects a second and worker 3 source" in words
    assert "50.0 % photometry flagged" in words
    edge = schemas.flag_descriptions()["edge"]
    assert f"photometry edge {edge} 617,284 50.00 %" in words
    assert "column any edge background_errors photometry_flag_g 20 0 20" in words
    assert "photometry_flag_r 5 5 0" in words
    assert "neither weights nor a gain" in words
    # Redshifts that the source brought are not a product's.
    assert "known redshifts" not in words


def test_text_on_the_page_is_escaped(photometry_page):
    assert "a<b>" not in photometry_page
    assert "a&lt;b&gt;&amp;amp;" in photometry_page
    assert "/a<b>&amp;'/releases/test/r1" in words_of(photometry_page)


def test_the_page_of_a_product_without_a_section_and_an_old_record(tmp_path):
    store = Store(str(tmp_path / "store"))
    flag = np.zeros(5, np.int32)
    write_leaves(store, np.linspace(10, 10.5, 5), np.zeros(5), shapes_flag=flag)
    publish(store, flags={"shapes": {"any": 0}})
    done = write_report(Survey(survey(tmp_path / "store")), tmp_path / "page.html")
    page = Path(done.report).read_text()
    assert page.count("<img") == 1
    words = words_of(page)
    assert "0.0 % shapes flagged" in words
    assert "Distributions" not in words
    assert "Band by band" not in words
