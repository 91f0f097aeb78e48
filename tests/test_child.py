"""What another process is asked for, and what becomes of us when it dies."""

import gc
import signal

import deadly
import numpy as np
import pytest
import small_survey
from astropy.io import fits

from surveyproc import child, verbs
from surveyproc.catalogs.readers import open_table, read_columns
from surveyproc.child import Talk
from surveyproc.config import load
from surveyproc.errors import DiedError, InputError, StoreError
from surveyproc.images import stamps, unpack
from surveyproc.images.cube import read_rows
from surveyproc.images.stamps import DamagedStampError, decoded
from surveyproc.store.storage import Store
from surveyproc.survey import Survey


@pytest.fixture(autouse=True)
def nobody_idle():
    """Other tests may have left processes, and these count theirs."""
    child._end()
    yield
    child._end()


def test_what_it_is_told_and_yields():
    talk = Talk(deadly.tell, "a", np.arange(3))
    first, doubled = talk.hear("x")
    assert first == "a"
    np.testing.assert_array_equal(doubled, [0, 2, 4])
    talk.say([np.ones((2, 3)), np.empty(0), None])
    ones, nothing, none = talk.hear("x")
    np.testing.assert_array_equal(ones, np.full((2, 3), 2.0))
    assert len(nothing) == 0
    assert none is None
    talk.close()


def test_one_process_serves_all_that_are_closed():
    found = set()
    for _ in range(3):
        talk = Talk(deadly.tell, 1)
        assert talk.hear("x") == [1]
        found.add(talk._child.process.pid)
        talk.close()
    other, more = Talk(deadly.tell, 1), Talk(deadly.tell, 2)
    assert [more.hear("x"), other.hear("x")] == [[2], [1]]
    other.close()
    more.close()
    assert len(found) == 1
    assert len(child._idle) == 2


def test_who_is_at_work_when_nobody_wants_it_any_more_is_ended():
    talk = Talk(deadly.tell, 1)
    process = talk._child.process
    del talk
    gc.collect()
    assert process.returncode == -signal.SIGKILL
    assert not child._idle


def test_a_process_that_dies_is_named_and_replaced():
    talk = Talk(deadly.crash_at, ["a", "b"], "b")
    assert talk.hear("a") == "a"
    talk.say(None)
    with pytest.raises(DiedError, match=r"b: its process died .* leave it out, or write it anew"):
        talk.hear("b")
    talk.close()
    talk = Talk(deadly.tell, 1)
    assert talk.hear("x") == [1]
    talk.close()


def test_no_memory_is_a_death_too():
    talk = Talk(deadly.eat, 1 << 30)
    with pytest.raises(DiedError, match=r"t\.csv: its process died \(killed for memory"):
        talk.hear("t.csv")
    talk.close()


def test_an_error_that_nobody_foresaw_comes_with_its_trace():
    talk = Talk(deadly.crash_at, 5, "")
    with pytest.raises(RuntimeError, match=r"crash_at(.|\n)*TypeError"):
        talk.hear("x")
    talk.close()
    assert len(child._idle) == 1


def test_a_table_whose_reader_dies(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("ra,dec\n" + "1,2\n" * 100_000)
    with open_table(str(path)) as reader:
        batches = reader.batches(10)
        next(batches)
        reader._talk._child.process.kill()
        with pytest.raises(InputError, match=r"t\.csv: its process died"):
            list(batches)
    assert len(read_columns(str(path), ["ra"])["ra"]) == 100_000


def test_batches_that_nobody_wanted_to_the_end(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("ra,dec\n1,2\n3,4\n5,6\n")
    with open_table(str(path)) as reader:
        next(reader.batches(1))
        next(reader.batches(1, ["dec"]))
        assert [one.to_pydict() for one in reader.batches(2, ["dec"])] == [
            {"dec": [2, 4]},
            {"dec": [6]},
        ]


def test_a_stamp_that_kills_costs_itself_only(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "_decode", deadly.decode)
    found = list(decoded(Store(str(tmp_path)), ["a.png", "deadly.png", "abc.png"]))
    assert [float(found[k][0, 0, 0]) for k in (0, 2)] == [5.0, 7.0]
    assert isinstance(found[1], DamagedStampError)
    assert "deadly.png: its process died" in str(found[1])


def test_if_all_die_it_is_not_the_stamps(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "_decode", deadly.decode)
    with pytest.raises(DiedError, match=r"deadly4\.png"):
        list(decoded(Store(str(tmp_path)), [f"deadly{k}.png" for k in range(9)]))


def packed_tiles(folder):
    """A survey whose second tile has a name that `deadly.unpack` dies of."""
    survey = small_survey.make(folder, objects=4)
    for path, name in zip(sorted(folder.glob("tiles/*")), ("good", "deadly"), strict=True):
        with fits.open(path) as (plain,):
            packed = fits.CompImageHDU(plain.data, plain.header, compression_type="GZIP_2")
            packed.writeto(path.with_name(f"{name}.fits.fz"))
        path.unlink()
    survey.write_text(survey.read_text().replace("tiles/*.fits", "tiles/*"))
    return Survey(load(survey))


def test_a_tile_that_kills_costs_itself_only(tmp_path, monkeypatch):
    survey = packed_tiles(tmp_path / "survey")
    with monkeypatch.context() as patched:
        patched.setattr(unpack, "_unpack", deadly.unpack)
        with pytest.raises(StoreError, match=r"tile t1: .*deadly\.fits\.fz\[1\]: its process died"):
            verbs.ingest(survey)
    assert [row["id"] for row in read_rows(survey.store)[1]] == ["t0"]
    # It may have been memory: what died is tried again.
    done = verbs.ingest(survey).tiles
    assert (done.written, done.unchanged) == (1, 1)


def test_one_process_unpacks_all_tiles_and_reads_the_catalog(tmp_path):
    survey = packed_tiles(tmp_path / "survey")
    assert verbs.ingest(survey).tiles.written == 2
    assert len(child._idle) == 1  # and all that the catalog needs
