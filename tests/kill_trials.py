"""Kill a worker, a node, the driver, a whole session or the store; the same command finishes.

    python tests/kill_trials.py --trials 50 --seed 1
    python tests/kill_trials.py --trials 10 --kind here
    python tests/kill_trials.py --trials 20 --twice

prints a line a trial. Every trial makes a release of a small survey, by `ingest` and `run` or by
`nightly`, with one kill at a random moment of each command, to a folder or to a bucket of a real S3
server, and must end with the bytes of an undisturbed run on disk. The test suite runs a few of the
same trials.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import psutil
import ray_nodes
import seaweed
from sums import is_leaf, sums

from surveyproc.simulate import simulate

KINDS = (
    ("worker", "disk"),
    ("driver", "disk"),
    ("session", "disk"),
    ("here", "disk"),
    ("node", "disk"),
    ("worker", "s3"),
    ("driver", "s3"),
    ("session", "s3"),
    ("here", "s3"),
    ("node", "s3"),
    ("store", "s3"),
)
"""What is killed, and where the survey lies: a session is the driver and the Ray that it started,
"here" a driver that works itself; the others use a cluster of three nodes, which stays."""
VERBS = (("ingest", "run"), ("nightly",))
"""How a trial makes its release: the commands that are killed and repeated."""
TWICE = (("twice", "disk"), ("twice", "s3"))
"""Nothing is killed, but two drivers run at once."""
COMMAND_TIMEOUT_S = 300
STORE_AWAY_S = 15.0
"""At most so long is the store gone; commands are patient for a minute."""
OBJECTS = 240
BUCKET = "trials"
SETTINGS = ("--set", f"catalog.partition_rows={OBJECTS // 12}")


@dataclass
class Arena:
    """What the trials share.

    Attributes
    ----------
    folder : Path
        Holds `survey` (as simulated), `trained` (a store with a trained model alone) and
        `ingested` (one with cubes and catalog too).
    expected : dict of str to str
        Checksums of what an undisturbed run wrote.
    seconds : dict of str to float
        How long each verb takes on the cluster; a night is an ingest and a run.
    nodes : Nodes
        The cluster.
    store : seaweed.Server or None
        The object store; None if its program is not on this machine.
    """

    folder: Path
    expected: dict[str, str]
    seconds: dict[str, float]
    nodes: ray_nodes.Nodes
    store: seaweed.Server | None


@contextmanager
def arena(folder: Path) -> Iterator[Arena]:
    """A survey with a trained model, its undisturbed results, a cluster and an object store."""
    program, before = seaweed.find(), dict(os.environ)
    store = seaweed.start(program, _made(folder / "seaweed")) if program else None
    nodes = None
    try:
        if store:
            # Nodes and commands take them.
            os.environ.update(seaweed.environment(store.endpoint))
            fsspec.filesystem("s3").mkdir(BUCKET)
        nodes = ray_nodes.Nodes()
        survey = simulate(folder / "survey", objects=OBJECTS, seed=3, workers=1).config
        there = ("--set", f"run.address={nodes.address}")
        seconds = {}
        for verb, settings in (("ingest", SETTINGS), ("run", ())):
            started = time.monotonic()
            call(verb, survey, *there, *settings)
            seconds[verb] = time.monotonic() - started
            if verb == "ingest":
                call("train", survey, *there, "--set", "products.photoz.training.epochs=1")
                shutil.copytree(survey.parent / "store", folder / "ingested")
                shutil.copytree(folder / "ingested", folder / "trained")
                for part in ("images", "catalogs"):
                    shutil.rmtree(folder / "trained" / part)
        seconds["nightly"] = seconds["ingest"] + seconds["run"]
        expected = fingerprints(str(survey.parent / "store"))
        yield Arena(folder, expected, seconds, nodes, store)
    finally:
        if nodes:
            nodes.end()
        if store:
            store.kill()
        os.environ.clear()
        os.environ.update(before)
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def command(verb: str, survey: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "surveyproc", verb, str(survey), "--json", *more]


def call(verb: str, survey: Path, *more: str) -> dict:
    done = subprocess.run(
        command(verb, survey, *more), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    if done.returncode:
        raise AssertionError(f"{verb} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def fingerprints(root: str) -> dict[str, str]:
    """SHA-256 of every leaf and of every byte of every cube."""
    return sums(root, lambda name: name.startswith("images/") or is_leaf(name))


def trial(
    place: Arena, name: str, kind: str, where: str, verbs: Sequence[str], rng: random.Random
) -> str:
    """Make a release with one kill in each verb, in a store of its own; what happened.

    Raises
    ------
    AssertionError
        If what came of it is not what an undisturbed run gives.
    """
    before = "ingested" if kind == "twice" else "trained"
    root = f"s3://{BUCKET}/{name}" if where == "s3" else str(place.folder / f"trial-{name}")
    if where == "s3":
        fsspec.filesystem("s3").put(f"{place.folder}/{before}/", f"{root}/", recursive=True)
    else:
        shutil.copytree(place.folder / before, root)
    survey = place.folder / "survey" / "survey.toml"
    settings = ["--set", f"survey.root={root}", *SETTINGS]
    own = {"session": "run.place=ray", "here": "run.place=here"}
    settings += ["--set", own.get(kind, f"run.address={place.nodes.address}")]
    story = []
    if kind == "twice":
        story.append(twice(command("run", survey, *settings)))
    else:
        for verb in verbs:
            least, most = (0.5, 3.0) if kind == "here" else (0.2, 1.0)
            delay = rng.uniform(least, most) * (1.0 if kind == "here" else place.seconds[verb])
            what = kill_at(place, command(verb, survey, *settings), kind, delay, rng)
            story.append(f"{verb}: {what}")
            call(verb, survey, *settings)
    again = call("run", survey, *settings)
    assert again["did"] == "nothing", again
    check = call("validate", survey, *settings)
    assert check["problems"] == [], check
    found = fingerprints(root)
    differ = sorted(
        key for key in found.keys() | place.expected if found.get(key) != place.expected.get(key)
    )
    assert not differ, (story, differ)
    if where == "s3":
        fsspec.filesystem("s3").rm(root, recursive=True)
    else:
        shutil.rmtree(root)
    return "; ".join(story)


def twice(started: list[str]) -> str:
    """Two drivers of one run at once."""
    pipe = subprocess.PIPE
    drivers = [subprocess.Popen(started, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    said = [driver.communicate(timeout=COMMAND_TIMEOUT_S) for driver in drivers]
    for driver, (_, error) in zip(drivers, said, strict=True):
        assert driver.returncode == 0, error[-2000:]
    done = [json.loads(out) for out, _ in said]
    assert done[0]["url"] == done[1]["url"], done
    units = [one.get("units_computed", 0) for one in done]
    return f"two drivers made {done[0]['release']}, {units[0]} and {units[1]} units"


def kill_at(place: Arena, started: list[str], kind: str, delay: float, rng: random.Random) -> str:
    """Start a command, kill what is to be killed after `delay` seconds; say what happened."""
    said = place.folder / "stderr.txt"
    with said.open("w") as stderr:
        driver = subprocess.Popen(
            started, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    at = f"at {delay:.1f} s"
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(delay)
        return f"ended before {at}"
    if kind in ("driver", "session", "here"):
        everything = [psutil.Process(driver.pid)]
        everything += everything[0].children(recursive=True) if kind == "session" else []
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        driver.wait()
        return f"{kind} killed {at}"
    if kind == "worker":
        while not place.nodes.kill_worker(rng):
            time.sleep(0.05)
            if driver.poll() is not None:
                return f"ended before there was a worker after {delay:.1f} s"
    elif kind == "node":
        place.nodes.kill(rng.choice(sorted(place.nodes.alive)))
    else:
        place.store.kill()
        back = threading.Timer(rng.uniform(1.0, STORE_AWAY_S), place.store.start)
        back.start()
    code = driver.wait(COMMAND_TIMEOUT_S)
    if kind == "node":
        place.nodes.fill()
    elif kind == "store":
        back.join()
    # The command heals by itself, or ends with an error and the next one resumes.
    why = f": {said.read_text()[-500:]}" if code else ""
    return f"{kind} killed {at}, command ended with {code}{why}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=sorted({kind for kind, _ in KINDS}))
    parser.add_argument("--twice", action="store_true", help="two drivers at once, no kills")
    options = parser.parse_args()
    good = kills = 0
    with tempfile.TemporaryDirectory() as name, arena(Path(name)) as place:
        took = ", ".join(f"{verb} {s:.1f} s" for verb, s in place.seconds.items())
        print(f"undisturbed: {len(place.expected)} files, {took}", flush=True)
        kinds = TWICE if options.twice else KINDS
        kinds = [one for one in kinds if one[1] == "disk" or place.store]
        kinds = [one for one in kinds if options.kind in (None, one[0])]
        for number in range(options.first, options.first + options.trials):
            kind, where = kinds[number % len(kinds)]
            rng = random.Random(f"{options.seed} {number}")
            started = time.monotonic()
            try:
                verbs = VERBS[number % len(VERBS)]
                story = trial(place, str(number), kind, where, verbs, rng)
                kills += story.count("killed")
                good += 1
            except (AssertionError, subprocess.TimeoutExpired) as error:
                story = f"NOT IDENTICAL: {error}"
            took = time.monotonic() - started
            print(f"{number} {kind} {where} {took:.0f} s: {story}", flush=True)
    print(f"{good} of {options.trials} trials ended byte-identical, after {kills} kills")
    sys.exit(good != options.trials)


if __name__ == "__main__":
    main()
