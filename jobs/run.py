"""`ray job submit --working-dir . -- python jobs/run.py survey.toml`."""

import sys

from surveyproc.cli.app import main

sys.argv.insert(1, "run")
main()
