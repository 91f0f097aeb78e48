"""Results too large for Ray's own messages, so that they lie on the node that made them.

As a program it prints the first result's number and node, waits for a line of input, and prints the
numbers of all: `python bulky_worker.py address folder`.
"""

import os
import sys
import time
import uuid
from contextlib import redirect_stdout
from pathlib import Path

import ray

from surveyproc.places import Item, Stage
from surveyproc.places.cluster import session

ITEMS, WORKERS, NBYTES = 12, 3, 1_500_000


class Bulky:
    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, number):
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{node}-{number}-{uuid.uuid4().hex}").touch()
        # Else the first node to be ready may do all there is.
        while len({path.name.split("-")[0] for path in self.folder.iterdir()}) < 2:
            time.sleep(0.05)
        return number, node, os.urandom(NBYTES)


if __name__ == "__main__":
    from bulky_worker import Bulky as Worker

    answers = sys.stdout
    # Ray prints on standard output what it has to say of nodes.
    with redirect_stdout(sys.stderr), session(sys.argv[1], workers=WORKERS) as cluster:
        items = [Item(str(number), number) for number in range(ITEMS)]
        results = cluster.stream(items, Stage("items", Worker, (sys.argv[2],)))
        first, node, _ = next(results)
        print(first, node, file=answers, flush=True)
        sys.stdin.readline()
        print(sorted([first, *(number for number, _, _ in results)]), file=answers)
