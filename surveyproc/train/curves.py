"""Loss curves of a training while it goes on: what is told of them, and what TensorBoard shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from tensorboardX import SummaryWriter

from surveyproc.errors import StoreError
from surveyproc.progress import PLAIN_INTERVAL_S
from surveyproc.store.storage import Store
from surveyproc.store.temporary import temporary_folder
from surveyproc.train.job import histories


@contextmanager
def watched_epochs(
    store: Store, folder: str, name: str, networks: int, epochs: int, tell: Callable[[str], None]
) -> Iterator[None]:
    """Tell of the last epochs, and log them, every five seconds while the block runs.

    Read from the store: the workers may be other processes.

    Parameters
    ----------
    store, folder : Store, str
        Where the training lies.
    name : str
        Of the model.
    networks, epochs : int
        How many networks there are, and epochs of each.
    tell : callable
        Told one line a network.
    """
    over = threading.Event()
    told: dict[int, int] = {}

    def look(how: str = "") -> None:
        for number, history in sorted(histories(store, folder).items()):
            if len(history) <= told.get(number, 0):
                continue
            write_log(store, folder, number, history)
            told[number], last = len(history), history[-1]
            which = f"network {number + 1} of {networks}, " if networks > 1 else ""
            tell(
                f"train {name}: {which}{how}epoch {last['epoch']} of {epochs}, "
                f"loss {last['loss']:.4f}"
            )

    look("goes on after ")

    def watch() -> None:
        while not over.wait(PLAIN_INTERVAL_S):
            # What is read while it is written, or was not there in time, is told the next time.
            with suppress(StoreError, OSError):
                look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    look()


def write_log(
    store: Store, folder: str, member: int, history: Sequence[Mapping[str, float]]
) -> None:
    """The loss curve of a member so far, for TensorBoard, under `log/`."""
    with temporary_folder() as place:
        with SummaryWriter(str(place)) as writer:
            for entry in history:
                for key in sorted(entry.keys() - {"epoch"}):
                    writer.add_scalar(key, entry[key], int(entry["epoch"]))
        (events,) = place.iterdir()
        # Its own name has the time in it; this one is replaced as the training goes on.
        store.put(f"{folder}/log/member-{member}/events.out.tfevents", events.read_bytes())
