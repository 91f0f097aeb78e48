"""`surveyproc` with a worker that leaves in the store which modules its process has loaded.

In a module of its own: Ray's worker processes import it by name. As a program it is the command.
"""

import sys

from surveyproc.cli.app import main
from surveyproc.run import pipeline
from surveyproc.run.pipeline import UnitWorker

KEY = "modules.json"


class TellingWorker(UnitWorker):
    def __call__(self, task):
        done = super().__call__(task)
        self.store.put_json(KEY, {"modules": [name for name in sys.modules if "." not in name]})
        return done


if __name__ == "__main__":
    # Not __main__'s: the workers import the class from this module by name.
    import imports_worker

    pipeline.UnitWorker = imports_worker.TellingWorker
    main()
