"""SIGKILL a worker, the driver or the whole session at a random moment; the same command finishes.

Run by itself: `python tests/kill_trials.py --trials 10 --seed 1` prints one line a trial. The test
suite runs a few of the same trials.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from surveyproc.simulate import simulate

KINDS = ("worker", "driver", "session")
COMMAND_TIMEOUT_S = 300
OBJECTS = 240


def command(verb: str, survey: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "surveyproc", verb, str(survey), "--json", *more]


def call(verb: str, survey: Path, *more: str) -> dict:
    done = subprocess.run(
        command(verb, survey, *more), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    if done.returncode:
        raise AssertionError(f"{verb} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def fingerprints(store: Path) -> dict[str, str]:
    """SHA-256 of every leaf and of every byte of every cube."""
    files = [*store.glob("releases/*/*/dataset/**/Npix*.parquet"), *store.glob("images/*/*/**/*")]
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file()
    }


def prepare(folder: Path) -> tuple[Path, dict[str, str], float]:
    """A small survey with a trained model, its undisturbed results, and how long `run` took."""
    survey = simulate(folder / "survey", objects=OBJECTS, seed=3, workers=1).config
    call("ingest", survey, "--set", f"catalog.partition_rows={OBJECTS // 12}")
    call("train", survey, "--set", "products.photoz.training.epochs=1")
    shutil.copytree(survey.parent, folder / "trained")
    shutil.rmtree(folder / "trained" / "store" / "images")
    shutil.rmtree(folder / "trained" / "store" / "catalogs")
    started = time.monotonic()
    call("run", survey)
    return survey, fingerprints(survey.parent / "store"), time.monotonic() - started


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def workers_of(pid: int) -> list[psutil.Process]:
    """Processes that compute units or cubes."""
    found = []
    for process in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if " ".join(process.cmdline()).startswith("ray::Map"):
                found.append(process)
    return found


def kill_at(
    verb: str, survey: Path, kind: str, delay: float, rng: random.Random, *more: str
) -> str:
    """Start `verb`, kill after `delay` seconds; say what happened."""
    driver = subprocess.Popen(
        command(verb, survey, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        driver.wait(delay)
        return "finished before"
    except subprocess.TimeoutExpired:
        pass
    if kind == "worker":
        until = time.monotonic() + 30
        while not (victims := workers_of(driver.pid)) and driver.poll() is None:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(victims).send_signal(signal.SIGKILL)
        code = driver.wait(COMMAND_TIMEOUT_S)
        # The command heals by itself, or ends with an error and the next one resumes.
        return f"worker killed, command ended with {code}"
    everything = descendants(driver.pid)
    driver.send_signal(signal.SIGKILL)
    if kind == "session":
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    driver.wait()
    return f"{kind} killed"


def trial(
    folder: Path, number: int, kind: str, rng: random.Random, run_seconds: float
) -> tuple[str, dict[str, str]]:
    """Ingest and run a fresh copy with one kill in each; what happened and the final bytes."""
    copy = folder / f"trial{number}"
    shutil.copytree(folder / "trained", copy)
    survey = copy / "survey.toml"
    partitions = ("--set", f"catalog.partition_rows={OBJECTS // 12}")
    story = []
    delay = rng.uniform(0.2, 1.0) * run_seconds
    story.append("ingest: " + kill_at("ingest", survey, kind, delay, rng, *partitions))
    call("ingest", survey, *partitions)
    delay = rng.uniform(0.2, 1.0) * run_seconds
    story.append(f"run at {delay:.1f} s: " + kill_at("run", survey, kind, delay, rng))
    call("run", survey)
    again = call("run", survey)
    assert again["did"] == "nothing", again
    check = call("validate", survey)
    assert check["problems"] == [], check
    found = fingerprints(copy / "store")
    shutil.rmtree(copy)
    return "; ".join(story), found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, expected, run_seconds = prepare(folder)
        print(f"undisturbed run: {len(expected)} files, {run_seconds:.1f} s", flush=True)
        identical = 0
        for number in range(options.trials):
            kind = KINDS[number % len(KINDS)]
            story, found = trial(folder, number, kind, rng, run_seconds)
            same = found == expected
            identical += same
            print(f"{number}: {'identical' if same else 'DIFFERENT'}: {story}", flush=True)
        print(f"{identical} of {options.trials} trials ended byte-identical")
        sys.exit(identical != options.trials)


if __name__ == "__main__":
    main()
