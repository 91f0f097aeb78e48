"""The command, as a user types it."""

import subprocess
import sys

TIMEOUT_S = 600


def surveyproc(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "surveyproc", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
