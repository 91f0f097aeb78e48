import re
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surveyproc.catalogs.around import Around
from surveyproc.errors import SurveyError
from surveyproc.images.cutouts import Cutouts
from surveyproc.products.base import Inputs, Product
from surveyproc.run import carry, unit
from surveyproc.schemas import Column, flag

NO_IMAGE, EDGE = flag("no_image"), flag("edge")


class Made:
    """A product made of a function from a batch to its values; it keeps the batches it saw."""

    version = "1"

    def __init__(self, name, work, gives=None, **inputs):
        self.name, self.work, self.inputs = name, work, Inputs(**inputs)
        self.columns = (
            *(gives or [Column(f"{name}_value", "float64")]),
            Column(f"{name}_flag", "int32"),
        )
        self.seen, self.prepared = [], 0

    def prepare(self):
        self.prepared += 1

    def compute(self, batch):
        self.seen.append(batch)
        values = self.work(batch)
        if not isinstance(values, dict):
            values = {f"{self.name}_value": values}
        return {f"{self.name}_flag": batch.flags, **values}


def coded(bands, size):
    """Pixels that tell their band and how far, in y and x, they are from the object's pixel."""
    far = np.arange(size) - size // 2
    plane = far[:, None] * 100 + far
    return np.stack([plane + 10_000 * ord(band) for band in bands]).astype(np.float32)


class Reader:
    """Stands in for a CutoutReader: some rows are covered, and come in an order of their own."""

    def __init__(self, bands, covered=(), weights=True):
        self.bands, self.covered, self.weights = tuple(bands), list(covered), weights
        self.tiles = ()
        self.asked, self.absent, self.spoilt_from = [], (), 1 << 30

    def batches(self, ra, dec, size, rows):
        self.asked.append((len(ra), size, rows))
        for start in range(0, len(self.covered), 2):
            index = np.array(self.covered[start : start + 2], np.int64)
            images = np.repeat(coded(self.bands, size)[None], len(index), axis=0)
            yield Cutouts(
                index=index,
                images=images,
                variance=images + 1 if self.weights else None,
                offsets=np.full((len(index), 2), 0.25, np.float32),
                positions=np.stack([ra[index], dec[index]], axis=-1),
                tiles=np.full(len(index), "t", dtype=object),
                tile_shape=np.full((len(index), 2), 9, np.int32),
                pixel_scale=np.full(len(index), 0.2),
                flags=np.full(len(index), EDGE, np.int32),
                absent=np.array([[band in self.absent for band in self.bands]] * len(index)),
                spoilt_from=np.full(len(index), self.spoilt_from, np.int32),
            )


def table_of(rows, **columns):
    number = np.arange(rows)
    return pa.table({"ra": number / 8, "dec": -number / 8, "number": number, **columns})


def sizes(product):
    return [len(batch.flags) for batch in product.seen]


def test_every_row_has_its_own_values_in_the_order_of_the_table():
    pair = Column("p_pair", "float32", length=2)
    text = Column("p_text", "string")

    def work(batch):
        number = batch.columns["number"]
        return {
            "p_pair": np.stack([number, -number], axis=-1),
            "p_text": np.array([f"n{one}" for one in number], dtype=object),
        }

    product = Made("p", work, [pair, text], bands=("g",), cutout=3, columns=("number",))
    assert isinstance(product, Product)
    reader = Reader("g", covered=[6, 1, 4, 0, 3])
    output = unit.compute(table_of(8), [product], reader).columns
    assert list(output) == ["p_pair", "p_text", "p_flag"]
    np.testing.assert_array_equal(output["p_pair"], [[n, -n] for n in range(8)])
    assert output["p_pair"].dtype == np.float32
    assert output["p_text"].tolist() == [f"n{n}" for n in range(8)]
    expected = [EDGE, EDGE, NO_IMAGE, EDGE, EDGE, NO_IMAGE, EDGE, NO_IMAGE]
    assert output["p_flag"].tolist() == expected
    assert sizes(product) == [2, 2, 1, 3]


def test_a_product_sees_the_columns_of_those_before_it_and_what_it_asked_for():
    order = []

    def noting(name, work):
        def noted(batch):
            order.append(name)
            return work(batch)

        return noted

    first = Made("a", noting("a", lambda b: b.columns["number"] + 0.5), columns=("number",))
    second = Made("b", noting("b", lambda b: 2 * b.columns["a_value"]), columns=("a_value",))
    third = Made(
        "c",
        noting("c", lambda b: b.columns["b_value"] + b.columns["ra"]),
        columns=("ra", "b_value", "a_flag"),
    )
    output = unit.compute(table_of(5), [first, second, third], None).columns
    np.testing.assert_array_equal(output["c_value"], 2 * (np.arange(5) + 0.5) + np.arange(5) / 8)
    assert order == ["a", "b", "c"]
    assert [list(one.seen[0].columns) for one in (first, second, third)] == [
        ["number"],
        ["a_value"],
        ["ra", "b_value", "a_flag"],
    ]
    with pytest.raises(KeyError, match="a_value"):
        unit.compute(table_of(5), [second, first], None)


@pytest.mark.parametrize("shape", [(0,), (4,), (6,), (5, 1), ()])
def test_a_product_that_gives_another_number_of_values_is_named(shape):
    product = Made("short", lambda batch: np.zeros(shape))
    told = re.escape(f"short gave short_value the shape {shape} for 5 objects; (5,) is declared")
    with pytest.raises(SurveyError, match=told):
        unit.compute(table_of(5), [product], None)


LIST = Column("lists_value", "float32", length=3)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)])
def test_lists_of_another_length_are_named(shape):
    product = Made("lists", lambda batch: np.zeros(shape), [LIST])
    with pytest.raises(SurveyError, match=r"lists gave lists_value .* \(3, 3\) is declared"):
        unit.compute(table_of(3), [product], None)


def test_whole_numbers_that_are_none_and_columns_that_are_absent_are_named():
    numbers = Made("counts", lambda batch: np.full(2, np.nan), [Column("counts_value", "int32")])
    with pytest.raises(SurveyError, match="counts gave counts_value values that are no whole"):
        unit.compute(table_of(2), [numbers], None)
    absent = Made("absent", lambda batch: np.zeros(2))
    absent.compute = lambda batch: {}
    with pytest.raises(SurveyError, match="absent gave no absent_"):
        unit.compute(table_of(2), [absent], None)


def test_objects_without_a_tile_come_with_nan_pixels_after_all_others():
    product = Made("p", lambda b: b.columns["number"], bands=("r", "g"), cutout=4,
                   columns=("number",))  # fmt: skip
    output = unit.compute(table_of(4), [product], Reader("gr", covered=[2])).columns
    assert output["p_value"].tolist() == [0, 1, 2, 3]
    assert output["p_flag"].tolist() == [NO_IMAGE, NO_IMAGE, EDGE, NO_IMAGE]
    covered, alone = product.seen
    assert covered.columns["number"].tolist() == [2]
    assert (covered.tiles.tolist(), covered.pixel_scale.tolist()) == (["t"], [0.2])
    assert covered.positions.tolist() == [[0.25, -0.25]]
    assert covered.offsets.tolist() == [[0.25, 0.25]]
    assert alone.columns["number"].tolist() == [0, 1, 3]
    assert alone.images.shape == (3, 2, 4, 4)
    assert np.isnan(alone.images).all()
    assert np.isnan(alone.positions).all()
    assert np.isnan(alone.pixel_scale).all()
    assert alone.tiles.tolist() == [None] * 3
    assert not alone.offsets.any()


def test_batches_of_columns_depend_on_the_number_of_rows_alone():
    rows = unit.COLUMN_ROWS + 1
    output, shapes = [], []
    for shift in (0, 7):
        product = Made("p", lambda b: b.columns["x"], columns=("x",))
        table = table_of(rows, x=np.arange(rows) + shift)
        output.append(unit.compute(table, [product], None).columns["p_value"])
        shapes.append(sizes(product))
        assert all(batch.images is None and not batch.flags.any() for batch in product.seen)
    assert shapes == [[unit.COLUMN_ROWS, 1]] * 2
    np.testing.assert_array_equal(output[0], np.arange(rows))
    np.testing.assert_array_equal(output[1], output[0] + 7)


def test_batches_of_images_hold_no_more_than_agreed_and_pixels_are_read_once():
    rows = unit.IMAGE_ROWS + 3
    small = Made("s", lambda b: b.columns["number"], bands=("g",), cutout=1, columns=("number",))
    large = Made("l", lambda b: b.columns["s_value"], bands=("g",), cutout=2, columns=("s_value",))
    reader = Reader("g", covered=[5, 3])
    output = unit.compute(table_of(rows), [small, large], reader).columns
    assert reader.asked == [(rows, 2, unit.IMAGE_ROWS)]
    assert sizes(small) == sizes(large) == [2, unit.IMAGE_ROWS, 1]
    np.testing.assert_array_equal(output["l_value"], np.arange(rows))


def test_no_rows_no_batches():
    product = Made("p", lambda b: 1 / 0, bands=("g",), cutout=3)
    for reader in (None, Reader("g")):
        output = unit.compute(table_of(0), [product], reader).columns
        assert {name: len(values) for name, values in output.items()} == {"p_value": 0, "p_flag": 0}
    assert unit.to_table(table_of(0), output, product.columns).num_rows == 0


BANDS = "ugriz"
own_bands = st.lists(st.sampled_from(BANDS), min_size=1, max_size=5, unique=True)


@given(
    wanted=st.lists(st.tuples(own_bands, st.integers(1, 9)), min_size=1, max_size=3),
    weights=st.booleans(),
)
def test_each_product_has_its_bands_and_the_object_in_the_middle(wanted, weights):
    products = [
        Made(f"p{number}", lambda b: b.flags, bands=tuple(bands), cutout=size)
        for number, (bands, size) in enumerate(wanted)
    ]
    needed, _ = unit.image_needs(products, BANDS)
    unit.compute(table_of(1), products, Reader(needed, covered=[0], weights=weights))
    for product in products:
        ((batch,), asked) = product.seen, product.inputs
        expected = coded(asked.bands, asked.cutout)
        np.testing.assert_array_equal(batch.images, [expected])
        assert expected[0, asked.cutout // 2, asked.cutout // 2] == 10_000 * ord(asked.bands[0])
        if weights:
            np.testing.assert_array_equal(batch.variance, [expected + 1])
        else:
            assert batch.variance is None


def test_the_edge_is_that_of_the_product_s_own_cutout():
    large, small = (
        Made(name, lambda b: b.flags, bands=("g",), cutout=size)
        for name, size in (("l", 9), ("s", 5))
    )
    places = [1.4, 1.6, 6.4, 6.6]  # nearest pixels 1, 2, 6 and 7 of 9
    table = pa.table({"ra": places, "dec": [4.0] * 4})
    output = unit.compute(table, [large, small], Reader("g", covered=[0, 1, 2, 3])).columns
    assert output["l_flag"].tolist() == [EDGE] * 4
    assert output["s_flag"].tolist() == [EDGE, 0, 0, EDGE]


def test_what_a_product_is_told_does_not_depend_on_what_others_read():
    """A band that it does not want is lacking; damage lies beyond its own cutout."""
    table = pa.table({"ra": [4.0], "dec": [4.0]})
    small = Made("s", lambda b: b.flags, bands=("g",), cutout=3)
    large = Made("l", lambda b: b.flags, bands=("g", "r"), cutout=7)
    reader = Reader("gr", covered=[0])
    reader.absent, reader.spoilt_from = ("r",), 5
    output = unit.compute(table, [small, large], reader).columns
    assert output["s_flag"].tolist() == [0]
    assert output["l_flag"].tolist() == [flag("missing_band", "corrupt_data")]
    assert np.isfinite(small.seen[0].images).all()
    assert np.isnan(large.seen[0].images).all()


def test_others_read_a_column_as_the_leaf_gives_it_back():
    """Not as it was computed: a product that is carried over must look the same to them."""
    wide = SimpleNamespace(
        name="w",
        inputs=Inputs(),
        version="1",
        columns=(
            Column("x", "float32"), Column("text", "string"),
            Column("list", "int32", length=2), Column("w_flag", "int32"),
        ),
        prepare=lambda: None,
        compute=lambda batch: {
            "x": np.full(len(batch.flags), 0.1),  # float64
            "text": np.full(len(batch.flags), None, object),
            "list": np.ones((len(batch.flags), 2), np.int32),
            "w_flag": batch.flags,
        },
    )  # fmt: skip
    names = ("x", "text", "list")
    reader = Made("r", lambda b: b.flags, columns=names)
    table = table_of(3)
    leaf = unit.to_table(table, unit.compute(table, [wide, reader], None).columns, wide.columns)
    known = {one.name: carry.as_numpy(leaf[one.name], one) for one in wide.columns}
    unit.compute(table, [reader], None, known)
    computed, carried = (batch.columns for batch in reader.seen)
    for name in names:
        assert computed[name].dtype == carried[name].dtype
        np.testing.assert_array_equal(computed[name], carried[name])


def test_rows_that_were_in_no_batch_are_an_error_not_nulls():
    product = Made("p", lambda b: b.flags, columns=("number",))
    table = table_of(5)
    computation = unit.Computation(table, [product])
    with pytest.raises(SurveyError, match="5 rows were in no batch"):
        computation.output()
    for read in unit.batches(table, [product], None):
        computation.add(read)
    assert len(computation.output().columns["p_flag"]) == 5


def test_large_cutouts_come_in_smaller_batches():
    bands = "ugriz"
    products = [Made("p", lambda b: b.flags, bands=tuple(bands), cutout=1000)]
    reader = Reader(bands, covered=[])
    unit.compute(table_of(0), products, reader)
    ((_, size, rows),) = reader.asked
    assert 1 <= rows < 10
    assert rows * len(bands) * size**2 <= unit.IMAGE_PIXELS


def test_a_product_of_columns_sees_no_pixels_and_no_flags_of_them():
    images = Made("i", lambda b: b.flags, bands=("g",), cutout=3)
    columns = Made("c", lambda b: b.columns["i_flag"], columns=("i_flag",))
    output = unit.compute(table_of(3), [images, columns], Reader("g", covered=[1])).columns
    assert output["c_value"].tolist() == [NO_IMAGE, EDGE, NO_IMAGE]
    assert output["c_flag"].tolist() == [0, 0, 0]
    assert all(batch.images is batch.variance is batch.tiles is None for batch in columns.seen)


def test_nulls_of_the_catalog():
    table = table_of(
        3,
        whole=pa.array([1, None, 3], pa.int32()),
        full=pa.array([1, 2, 3], pa.int32()),
        real=pa.array([0.5, None, 2.5], pa.float32()),
        text=pa.array(["a", None, "c"]),
    )
    product = Made("p", lambda b: b.flags, columns=("whole", "full", "real", "text"))
    unit.compute(table, [product], None)
    seen = product.seen[0].columns
    np.testing.assert_array_equal(seen["whole"], [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(seen["real"], [0.5, np.nan, 2.5])
    assert seen["text"].tolist() == ["a", None, "c"]
    types = {name: seen[name].dtype for name in ("whole", "full", "real")}
    assert types == {"whole": np.float64, "full": np.int32, "real": np.float32}


COLUMNS = (
    Column("number", "int32"),
    Column("text", "string"),
    Column("list", "float32", length=2),
    Column("real", "float32"),
    Column("p_flag", "int32"),
)


def test_the_table_has_the_declared_columns_and_nulls():
    nan = np.nan
    output = {
        "p_flag": np.array([0, 4, 1], np.int64),
        "real": np.array([1.5, nan, np.inf]),
        "list": np.array([[nan, nan], [nan, 1], [2, 3]]),
        "text": np.array(["one", None, ""], dtype=object),
    }
    table = unit.to_table(table_of(3), output, COLUMNS)
    table.validate(full=True)
    assert table.schema == pa.schema(
        {
            "number": pa.int32(),
            "text": pa.string(),
            "list": pa.list_(pa.float32()),
            "real": pa.float32(),
            "p_flag": pa.int32(),
        }
    )
    assert table["number"].to_pylist() == [0, 1, 2]
    assert table["text"].to_pylist() == ["one", "", ""]
    assert table["real"].to_pylist() == [1.5, None, np.inf]
    assert table["p_flag"].to_pylist() == [0, 4, 1]
    nothing, half, whole = table["list"].to_pylist()
    assert nothing is None
    np.testing.assert_array_equal(half, [nan, 1])
    assert whole == [2, 3]


def test_null_text_of_the_source_is_empty_because_astropy_opens_none():
    source = pa.table({"name": ["a", None], "code": pa.array([None, b"x"]), "n": [1, None]})
    columns = (Column("name", "string"), Column("code", "binary"), Column("n", "int64"))
    table = unit.to_table(source, {}, columns)
    assert table.to_pydict() == {"name": ["a", ""], "code": [b"", b"x"], "n": [1, None]}


def test_quarantined_rows_hold_nulls_and_the_flag_of_every_product():
    more = [Column("real", "float32"), Column("list", "float32", length=2)]
    products = [Made("p", None, more), Made("q", None, [Column("text", "string")])]
    columns = [column for product in products for column in product.columns]
    output = unit.quarantined(2, products).columns
    again = [Made(one.name, lambda batch: output, one.columns[:-1]) for one in products]
    computed = unit.compute(table_of(2), again, None).columns
    assert list(output) == list(computed) == [column.name for column in columns]
    assert [one.dtype for one in output.values()] == [one.dtype for one in computed.values()]
    assert unit.to_table(table_of(2), output, columns).to_pylist() == 2 * [
        {
            "real": None,
            "list": None,
            "p_flag": flag("quarantined"),
            "text": "",
            "q_flag": flag("quarantined"),
        }
    ]


def test_image_needs_are_the_union_in_the_order_of_the_survey():
    products = [
        Made("a", None, bands=("i", "g"), cutout=5),
        Made("b", None, bands=("g", "u"), cutout=8),
        Made("c", None, bands=("z",), columns=("number",)),  # reads columns of the band, no pixels
    ]
    assert unit.image_needs(products, BANDS) == (["u", "g", "i"], 8)
    assert unit.image_needs(products[2:], BANDS) == ([], 0)
    assert unit.image_needs([], BANDS) == ([], 0)


def test_prepare_loads_each_product_and_no_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    products = [Made("a", None), Made("b", None)]
    unit.prepare(products)
    assert [product.prepared for product in products] == [1, 1]
    assert "torch" not in sys.modules


def test_prepare_gives_torch_one_thread_also_if_a_product_has_just_imported_it(monkeypatch):
    threads = []
    stand_in = SimpleNamespace(set_num_threads=threads.append)
    # Put there and taken away, so that what was there comes back.
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    del sys.modules["torch"]
    product = Made("a", None)
    product.prepare = lambda: sys.modules.update(torch=stand_in)
    unit.prepare([product])
    assert threads == [1]


def test_a_product_is_told_of_its_own_neighbours_alone():
    """The nearest that it asks for, within its own radius, whatever others of the run want."""
    offsets = np.full((4, 3, 2), np.nan)
    offsets[0] = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    offsets[2, 0] = [0.0, 2.0]
    around = Around(np.array([[5, 6, 7], [0, 0, 0], [8, 0, 0], [0, 0, 0]]), offsets)
    wide = Made("wide", lambda b: b.neighbour_ids[:, 0] + 0.0, neighbours=3, radius=3.0)
    tight = Made("tight", lambda b: b.neighbour_ids[:, 0] + 0.0, neighbours=2, radius=1.5)
    blind = Made("blind", lambda b: np.zeros(len(b.flags)))
    both = Made("both", lambda b: b.images[:, 0, 0, 0], bands="g", cutout=3, neighbours=1, radius=9)
    products = [wide, tight, blind, both]
    reader = Reader("g", covered=[2, 0])
    output = unit.compute(table_of(4), products, reader, around=around).columns
    assert output["wide_value"].tolist() == [5, 0, 8, 0]
    assert output["tight_value"].tolist() == [5, 0, 0, 0]
    assert [len(batch.flags) for batch in tight.seen] == [2, 2]
    assert tight.seen[0].neighbour_ids.tolist() == [[0, 0], [5, 0]]
    assert np.isnan(tight.seen[0].neighbour_offsets[1, 1]).all()
    assert blind.seen[0].neighbour_ids is None
    assert both.seen[0].neighbour_ids.tolist() == [[8], [5]]
    assert tight.seen[0].neighbour_pixels.shape == (2, 2, 2)
