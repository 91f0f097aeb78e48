"""The newest set of versions that pyproject.toml allows, as pip resolves it, for constraints.txt.

Nothing is installed: what lies in a virtual environment by chance is not part of the set.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = """\
# The versions with which `make test` works, for pip's option -c (Python {0}.{1}, {2}).
# Written by `make constraints`, not by hand: the newest ones that pyproject.toml allows.
"""


def main() -> None:
    """Resolve the package in this folder with its tests, print the set."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ("--quiet", "--dry-run", "--ignore-installed", "--report", str(report))
        subprocess.run((sys.executable, "-m", "pip", "install", *options, ".[test]"), check=True)
        resolved = json.loads(report.read_text())["install"]
    print(HEAD.format(*sys.version_info[:2], sys.platform), end="")
    for one in sorted(resolved, key=lambda one: one["metadata"]["name"].lower()):
        if "dir_info" not in one["download_info"]:  # the package itself
            # A local version (2.9.0+cpu) is on nobody else's shelf.
            print(f"{one['metadata']['name']}=={one['metadata']['version'].partition('+')[0]}")


if __name__ == "__main__":
    main()
