"""The examples' packages as a user has them: installed in a folder, used by the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def install(name, folder, build):
    """Put the example `name` into `folder` as pip does, from a copy of its source in `build`."""
    # The build leaves files beside its source.
    source = shutil.copytree(EXAMPLES / name, build / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder, source], check=True)
    return folder


def command(installed, *arguments):
    path = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
    return (
        [sys.executable, "-m", "surveyproc", *map(str, arguments)],
        {**os.environ, "PYTHONPATH": path},
    )


def call(installed, verb, survey, *more):
    line, environment = command(installed, verb, survey, *more, "--json")
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
