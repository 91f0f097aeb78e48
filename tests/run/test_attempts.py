"""What is kept of failed attempts."""

from surveyproc.errors import DIED
from surveyproc.run.attempts import Failure, record, recorded
from surveyproc.store.storage import Store


def test_failures_come_back_and_are_gone_when_an_attempt_succeeds(tmp_path):
    store, failures = Store(str(tmp_path)), [Failure("no memory"), Failure(DIED, died=True)]
    record(store, "runs/r1", "u", failures)
    assert recorded(store, "runs/r1") == {"u": failures}
    record(store, "runs/r1", "u", [])
    assert recorded(store, "runs/r1") == {}


def test_records_of_errors_alone_are_read(tmp_path):
    store = Store(str(tmp_path))
    store.put_json("runs/r1/attempts/u.json", ["no memory", DIED])
    assert recorded(store, "runs/r1") == {"u": [Failure("no memory"), Failure(DIED, died=True)]}
