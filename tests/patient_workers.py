"""Workers whose first item takes longer than any limit there might be.

In a module of its own: Ray's worker processes import it by name. As a program it ingests, trains
and runs a survey with them, on Ray: `python patient_workers.py survey.toml`.
"""

import json
import sys
import time

from surveyproc import verbs
from surveyproc.config import load
from surveyproc.images import ingest
from surveyproc.places import opened
from surveyproc.run import pipeline
from surveyproc.survey import Survey
from surveyproc.train import apart

LIMIT_S, LONG_S = 2, 6


class Tiles(ingest._TileWorker):
    def __init__(self, *arguments):
        time.sleep(LONG_S)
        super().__init__(*arguments)


class Networks(apart._Alone):
    def __init__(self, *arguments):
        time.sleep(LONG_S)
        super().__init__(*arguments)


class Units(pipeline.UnitWorker):
    def __init__(self, *arguments):
        time.sleep(LONG_S)
        super().__init__(*arguments)


if __name__ == "__main__":
    # Not __main__'s: the workers import the classes from this module by name.
    import patient_workers

    ingest._TileWorker = patient_workers.Tiles
    apart._Alone = patient_workers.Networks
    pipeline.UnitWorker = patient_workers.Units
    training = ["products.photoz.training.members=2", "products.photoz.training.epochs=1"]
    config = load(sys.argv[1], ["run.place=ray", "run.workers=2", *training])
    with opened(config.run):
        tiles = verbs.ingest(Survey(config)).tiles.written
        verbs.train(Survey(config))
        done = verbs.run(Survey(config))
    print(json.dumps({"tiles": tiles, "did": done.did, "ray.data": "ray.data" in sys.modules}))
