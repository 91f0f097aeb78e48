"""TensorBoard shows the loss curves of a training, also while they grow."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from surveyproc.store.storage import Store
from surveyproc.train.curves import write_log


def epoch(number):
    numbers = {"loss": 1.0 / number, "validation_loss": 2.0 / number, "rate": 10.0**-number}
    return {"epoch": number, **numbers}


def scalars(data):
    """(tag, step) -> value of the TFRecords of an event file: length, its CRC, event, its CRC."""
    found = {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    return found


def test_tensorboard_reads_the_curves_so_far(tmp_path):
    store, folder = Store(str(tmp_path)), "runs/train-net/abc"
    for epochs in (1, 3):
        history = [epoch(number + 1) for number in range(epochs)]
        write_log(store, folder, 2, history)
        # TensorBoard takes every file of a folder whose name holds "tfevents".
        (name,) = store.names(f"{folder}/log/member-2")
        assert "tfevents" in name
        expected = {
            (key, entry["epoch"]): value
            for entry in history
            for key, value in entry.items()
            if key != "epoch"
        }
        found = scalars(store.read(f"{folder}/log/member-2/{name}"))
        assert found == pytest.approx(expected)
