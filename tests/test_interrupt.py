"""Ctrl-C: the command ends in time, says how to go on, and its status is that of shells."""

import os
import signal
import subprocess
import sys
import time

import pytest

START = """
import time
from concurrent.futures import ThreadPoolExecutor
from surveyproc.interrupt import hint, watched
with watched():
    hint("all is kept")
    print("ready", flush=True)
"""
STOPPED_LATE = """
    with ThreadPoolExecutor(1) as pool:  # left when its thread has ended
        pool.submit(time.sleep, 60).result()
"""
SWALLOWED = """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""
TURNED = """
    try:
        time.sleep(60)
    except KeyboardInterrupt as error:
        raise RuntimeError("a library's own error") from error
"""


def interrupted(
    command: list[str], *, line: str = "", after: float = 0.0
) -> tuple[int, str, float]:
    """Status, standard error and seconds of a command after Ctrl-C."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    if line:
        assert process.stdout.readline() == line
    while len(os.listdir(f"/proc/{process.pid}/task")) == 1 and process.poll() is None:
        time.sleep(0.005)  # until somebody looks after Ctrl-C
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = process.communicate(timeout=30)
    return process.returncode, said, time.monotonic() - started


@pytest.mark.parametrize("block", [STOPPED_LATE, SWALLOWED, TURNED])
def test_whatever_happens_to_the_interrupt_it_ends_in_time(block):
    status, said, seconds = interrupted(
        [sys.executable, "-c", START + block], line="ready\n", after=0.05
    )
    assert status == 130
    assert said == "interrupted: all is kept\n"
    assert seconds < 3


def test_the_word_reaches_a_standard_error_that_leads_elsewhere_for_now():
    block = """
    import os
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    time.sleep(60)
"""
    status, said, _ = interrupted([sys.executable, "-c", START + block], line="ready\n", after=0.05)
    assert (status, said) == (130, "interrupted: all is kept\n")


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 0.6])
def test_a_verb_says_what_was_kept_at_any_moment(survey_to_interrupt, after):
    command = [sys.executable, "-m", "surveyproc", "ingest", str(survey_to_interrupt)]
    status, said, seconds = interrupted(command, after=after)
    last = said.splitlines()[-1]
    assert status == 130
    assert last.startswith("interrupted: ")
    assert last.endswith(("goes on from there", "repeat the command"))
    assert "Traceback" not in said
    assert seconds < 3


@pytest.fixture(scope="module")
def survey_to_interrupt(tmp_path_factory):
    """A survey whose catalog takes seconds to read."""
    tmp_path = tmp_path_factory.mktemp("long")
    lines = "".join(f"{n},{n / 3000 % 360},{n / 60000 % 60}\n" for n in range(600_000))
    (tmp_path / "sources.csv").write_text("object_id,ra,dec\n" + lines)
    (tmp_path / "survey.toml").write_text(
        f'[survey]\nname = "long"\nroot = "{tmp_path}/store"\n[images]\nbands = ["r"]\n'
        '[catalog]\nsource = "sources.csv"\npartition_rows = 500\n'
    )
    return tmp_path / "survey.toml"
