"""Files made to do harm: each is refused by name, in bounded memory and time."""

import bz2
import contextlib
import gzip
import io
import json
import re
import struct
import time
import zlib

import limited
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_survey
from astropy.io import fits

from surveyproc.child import Talk

HOSTILE = {}
SECONDS = 20.0
"""The worst of these takes two, on a machine that does nothing else."""


def hostile(kind, name, says):
    """A function that writes a file `name`, and what must be said of it."""

    def keep(make):
        HOSTILE[make.__name__] = (kind, name, says, make)
        return make

    return keep


def header(*cards):
    text = "".join(card.ljust(80) for card in [*cards, "END"])
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


def card(key, value):
    return f"{key:<8}= {value!s:>20}"


SKY = [
    card(key, value)
    for key, value in {
        "CTYPE1": "'RA---TAN'",
        "CTYPE2": "'DEC--TAN'",
        "CRVAL1": 10.0,
        "CRVAL2": 0.0,
        "CRPIX1": 32.0,
        "CRPIX2": 32.0,
        "CD1_1": -1e-4,
        "CD2_2": 1e-4,
        "MAGZERO": 25.0,
        "FILTER": "'r'",
        "OBJECT": "'bad'",
    }.items()
]


def image(bitpix=-32, axes=(64, 64), *more):
    lengths = [card(f"NAXIS{number}", length) for number, length in enumerate(axes, 1)]
    first = [card("SIMPLE", "T"), card("BITPIX", bitpix), card("NAXIS", len(axes)), *lengths]
    return header(*first, *SKY, *more) + bytes(17280)


def table(rows, width, columns, *more, data=b""):
    """A FITS file of one binary table; `columns` are pairs of name and TFORM."""
    first = header(card("SIMPLE", "T"), card("BITPIX", 8), card("NAXIS", 0))
    known = {"BITPIX": 8, "NAXIS": 2, "NAXIS1": width, "NAXIS2": rows, "PCOUNT": 0, "GCOUNT": 1}
    cards = [card("XTENSION", "'BINTABLE'"), *(card(*pair) for pair in known.items())]
    cards.append(card("TFIELDS", len(columns)))
    for number, (name, form) in enumerate(columns, 1):
        cards += [card(f"TTYPE{number}", f"'{name}'"), card(f"TFORM{number}", f"'{form}'")]
    return first + header(*cards, *more) + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


COLUMNS = [("object_id", "K"), ("ra", "D"), ("dec", "D")]
ROW = struct.pack(">qdd", 1, 10.0, 0.0)


# Images


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def image_of_999_axes(path):
    path.write_bytes(image(axes=(2,) * 999))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def image_of_a_negative_side(path):
    path.write_bytes(image(axes=(-64, 64)))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def image_of_7_bits_a_pixel(path):
    path.write_bytes(image(bitpix=7))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def image_whose_bytes_are_more_than_an_integer_holds(path):
    path.write_bytes(image(axes=(1 << 33, 1 << 33)))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def header_without_an_end(path):
    path.write_bytes(image().replace(b"END   ", b"HISTORY"[:6]))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits.*OBJECT is a text of 99\d\d characters.*\n2 tiles")
def text_that_goes_on_and_on(path):
    more = ["CONTINUE  '" + "a" * 66 + "&'"] * 150
    path.write_bytes(image(-32, (64, 64), *more).replace(b"'bad' ", b"'bad&'", 1))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def grid_that_is_a_point(path):
    path.write_bytes(image().replace(b"0.0001", b"     0"))


def packed(**changes):
    """A tile-compressed image with other values in its header."""
    rng = np.random.default_rng(0)
    made = fits.Header([(one[:8].strip(), json.loads(one[10:].replace("'", '"'))) for one in SKY])
    stream = io.BytesIO()
    fits.CompImageHDU(rng.integers(0, 99, (64, 64), np.int16), made).writeto(stream)
    data = stream.getvalue()
    for key, value in changes.items():
        place = data.index(f"{key:<8}=".encode())
        data = data[:place] + card(key, value).ljust(80).encode() + data[place + 80 :]
    return data


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def packed_image_cut_short(path):
    path.write_bytes(packed()[:-2880])


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def packed_image_that_claims_a_trillion_pixels(path):
    path.write_bytes(packed(ZNAXIS1=1_000_000, ZNAXIS2=1_000_000))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def packed_image_of_one_huge_tile(path):
    path.write_bytes(packed(ZTILE1=2_000_000_000, ZTILE2=2_000_000_000))


@hostile("ingest", "tiles/bad.fits", r"bad\.fits(.|\n)*\n2 tiles")
def packed_image_with_a_heap_beyond_the_file(path):
    path.write_bytes(packed(PCOUNT=1 << 50))


@hostile("ingest", "tiles/bad.fits.gz", r"bad\.fits\.gz(.|\n)*\n2 tiles")
def header_that_unpacks_for_ever(path):
    with gzip.open(path, "wb", 1) as stream:
        stream.write(image().partition(b"END   ")[0])
        for _ in range(400):
            stream.write(b"HISTORY x".ljust(80) * (1 << 14))


# Catalogs


@hostile("ingest", "sources.fits", r"InputError: .*sources\.fits")
def heap_beyond_the_table(path):
    form = [*COLUMNS, ("v", "PD(9)")]
    data = ROW + struct.pack(">ii", 9, 0)
    path.write_bytes(table(1, 32, form, card("THEAP", 1 << 60), data=data))


@hostile("ingest", "sources.fits", r"InputError: .*sources\.fits.*'v' ends at byte")
def column_wider_than_its_row(path):
    path.write_bytes(table(1, 24, [*COLUMNS, ("v", "1000000000J")], data=ROW))


@hostile("ingest", "sources.fits", r"^2 tiles")
def shape_that_does_not_fit_its_column(path):
    more = card("TDIM4", f"'({','.join(['1000000'] * 6)})'")
    path.write_bytes(table(1, 28, [*COLUMNS, ("v", "1J")], more, data=ROW + bytes(4)))


@hostile("ingest", "sources.fits", r"InputError: .*sources\.fits")
def table_of_a_billion_columns(path):
    made = table(1, 24, COLUMNS, data=ROW)
    path.write_bytes(made.replace(card("TFIELDS", 3).encode(), card("TFIELDS", 10**9).encode()))


@hostile("ingest", "sources.fits", r"InputError: .*sources\.fits")
def table_of_more_rows_than_an_integer_holds(path):
    path.write_bytes(table(1 << 62, 24, COLUMNS, data=ROW))


def parquet(path, **columns):
    rows = {"object_id": [1, 2], "ra": [10.0, 10.0], "dec": [0.0, 0.0], **columns}
    pq.write_table(pa.table(rows), path, compression="none")
    return path.read_bytes()


@hostile("ingest", "sources.parquet", r"InputError: .*sources\.parquet")
def parquet_whose_row_group_claims_rows_without_end(path):
    data = parquet(path)
    size = struct.unpack("<I", data[-8:-4])[0] + 5
    # Its number in Thrift's compact integers stands in several places.
    for found in re.finditer(b"\x16\x04", data):
        many = data[: found.start()] + b"\x16" + b"\x80" * 5 + b"\x40" + data[found.end() : -8]
        path.write_bytes(many + struct.pack("<I", size) + b"PAR1")
        with contextlib.suppress(OSError):
            if pq.ParquetFile(path).metadata.row_group(0).num_rows == 1 << 40:
                return
    raise AssertionError


@hostile("ingest", "sources.parquet", r"InputError: .*sources\.parquet")
def parquet_whose_dictionary_lies(path):
    data = parquet(path, s=["abc", "abd"])
    place = data.index(b"abc") - 4
    path.write_bytes(data[:place] + struct.pack("<I", 0x7FFFFFFF) + data[place + 4 :])


@hostile("ingest", "sources.parquet", r"(Died|Input)Error: .*sources\.parquet")
def parquet_of_one_bit_that_aborts_arrow(path):
    data = parquet(path)
    optional = b"\x25\x02\x18\x02ra"  # in the footer: repetition, then the column's name
    assert data.count(optional) == 1
    path.write_bytes(data.replace(optional, optional.replace(b"\x02", b"\x00", 1)))


@hostile("ingest", "sources.parquet", r"InputError: .*sources\.parquet")
def parquet_with_a_footer_larger_than_it(path):
    data = parquet(path)
    path.write_bytes(data[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")


@hostile("ingest", "sources.parquet", r"InputError: .*sources\.parquet.*too deeply nested")
def parquet_of_a_column_nested_two_hundred_deep(path):
    value = 1
    for _ in range(200):
        value = [value]
    parquet(path, s=[value, value])


@hostile("ingest", "sources.parquet", r"InputError: .*sources\.parquet: the catalog has no rows")
def parquet_without_row_groups(path):
    names = {"object_id": pa.int64(), "ra": pa.float64(), "dec": pa.float64()}
    pq.ParquetWriter(path, pa.schema(list(names.items()))).close()


@hostile("ingest", "sources.csv", r"InputError: .*sources\.csv")
def csv_of_a_million_columns(path):
    path.write_text("object_id,ra,dec" + "".join(f",c{k}" for k in range(1_000_000)) + "\n1,1,1\n")


@hostile("ingest", "sources.csv", r"InputError: .*sources\.csv")
def csv_with_zero_bytes(path):
    path.write_bytes(b"object_id,ra,dec,s\n" + b"1,10,0,\0\0\n" * 10)


@hostile("ingest", "sources.csv", r"InputError: .*sources\.csv")
def csv_with_a_field_of_100_MB(path):
    path.write_text("object_id,ra,dec,s\n1,10,0," + "a" * 100_000_000 + "\n")


@hostile("ingest", "sources.csv", r"InputError: .*sources\.csv.*a line has more than 4 MB")
def csv_with_a_row_that_unpacks_for_ever(path):
    with gzip.open(path, "wb", 1) as stream:
        stream.write(b"object_id,ra,dec,s\n1,10,0,")
        for _ in range(400):
            stream.write(b"a" * (1 << 20))


@hostile("ingest", "sources.ecsv", r"InputError: .*sources\.ecsv.*no line of column names")
def ecsv_header_that_unpacks_for_ever(path):
    with gzip.open(path, "wb", 1) as stream:
        stream.write(b"# %ECSV 1.0\n# ---\n# meta: ")
        for _ in range(400):
            stream.write(b"a" * (1 << 20))


@hostile("ingest", "sources.csv", r"InputError: .*sources\.csv")
def csv_with_a_quote_that_is_never_closed(path):
    path.write_text('object_id,ra,dec,s\n1,10,0,"' + "1,10,0,a\n" * 5_000_000)


VOTABLE = (
    '<VOTABLE version="1.3"><RESOURCE><TABLE><FIELD name="object_id" datatype="long"/>'
    '<FIELD name="ra" datatype="double"/><FIELD name="dec" datatype="double"/>'
)


@hostile("ingest", "sources.vot", r"InputError: .*sources\.vot")
def votable_of_entities_that_grow(path):
    grow = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))
    start = f'<?xml version="1.0"?><!DOCTYPE VOTABLE [<!ENTITY a0 "lol">{grow}]>'
    path.write_text(
        f"{start}{VOTABLE}<DESCRIPTION>&a11;</DESCRIPTION></TABLE></RESOURCE></VOTABLE>"
    )


@hostile("ingest", "sources.vot", r"InputError: .*sources\.vot")
def votable_nested_without_end(path):
    path.write_text('<VOTABLE version="1.3">' + "<RESOURCE>" * 300_000)


@hostile("ingest", "sources.ecsv", r"InputError: .*sources\.ecsv")
def ecsv_header_nested_without_end(path):
    path.write_text("# %ECSV 1.0\n# ---\n# meta: " + "[" * 100_000 + "\nobject_id ra dec\n1 1 1\n")


@hostile("ingest", "sources.csv", r"InputError: .*sources\.csv")
def tables_in_bzip2(path):
    path.write_bytes(bz2.compress(b"object_id,ra,dec\n1,10,0\n"))


@hostile("foreign", "coll", r"(StoreError|InputError): .*")
def properties_with_a_line_of_100_MB(path):
    (path / "dataset").mkdir(parents=True)
    (path / "hats.properties").write_text("obs_collection=" + "a" * 100_000_000)


@hostile("foreign", "coll", r"InputError: .* there are no leaves")
def leaf_of_an_order_that_is_none(path):
    folder = path / "dataset/Norder=60/Dir=0"
    folder.mkdir(parents=True)
    (path / "hats.properties").write_text("obs_collection=x\n")
    (path / "partition_info.csv").write_text("Norder,Npix\n60,0\n")
    pq.write_table(pa.table({"ra": [1.0]}), folder / "Npix=0.parquet")


# Stamps


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def size_of(width, height):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


END = (b"IEND", b"")


@hostile("stamp", "bad.png", r"DamagedStampError: bad\.png")
def png_of_ten_billion_pixels(path):
    path.write_bytes(png(size_of(100_000, 100_000), (b"IDAT", zlib.compress(b"")), END))


@hostile("stamp", "bad.png", r"DamagedStampError: bad\.png")
def png_with_a_text_that_unpacks_to_2_GB(path):
    bomb = b"k\0\1\0\0\0" + zlib.compress(bytes(1 << 27)) * 1
    rows = zlib.compress((b"\0" + bytes(24)) * 8)
    path.write_bytes(png(size_of(8, 8), (b"iTXt", bomb), (b"IDAT", rows), END))


@hostile("stamp", "bad.png", r"\(3, 8, 8\)")
def png_with_pixels_behind_its_last(path):
    rows = zlib.compress((b"\0" + bytes(24)) * 8 + bytes(1 << 28))
    path.write_bytes(png(size_of(8, 8), (b"IDAT", rows), END))


@hostile("stamp", "bad.fits", r"DamagedStampError: bad\.fits")
def stamp_that_claims_a_trillion_pixels(path):
    path.write_bytes(image(axes=(1_000_000, 1_000_000)))


# Models and settings


@hostile("tensors", "weights.safetensors", r"InputError: weights\.safetensors")
def tensors_whose_header_claims_a_petabyte(path):
    path.write_bytes(struct.pack("<Q", 10**15) + b"{}")


@hostile("tensors", "weights.safetensors", r"InputError: weights\.safetensors")
def tensors_of_a_shape_that_overflows(path):
    entry = {"dtype": "F64", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}
    text = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


@hostile("model", "m", r"InputError: .*model\.json")
def model_nested_without_end(path):
    path.mkdir()
    (path / "model.json").write_text('{"a":' * 200_000)


@hostile("survey", "survey.toml", r"ConfigError: .*survey\.toml")
def settings_nested_without_end(path):
    path.write_text("a = " + "[" * 100_000)


@hostile("survey", "survey.toml", r"ConfigError: .*survey\.toml")
def settings_with_a_number_of_a_million_digits(path):
    path.write_text("a = " + "9" * 1_000_000)


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_by_name(tmp_path, name):
    kind, file, says, make = HOSTILE[name]
    folder = tmp_path / "survey"
    survey = small_survey.make(folder, objects=4)
    path = folder / file
    if kind in ("ingest", "survey") and path.parent == folder and path.exists():
        path.unlink()
    make(path)
    text = survey.read_text() if kind != "survey" else ""
    if kind == "ingest":
        source = file if path.parent == folder else "sources.csv"
        text = text.replace("tiles/*.fits", "tiles/*").replace("sources.csv", source)
        survey.write_text(text)
    started = time.monotonic()
    with contextlib.closing(
        Talk(limited.read, kind, str(survey if kind == "ingest" else path))
    ) as talk:
        said = talk.hear(file)
    assert time.monotonic() - started < SECONDS
    assert re.search(says, said), said
