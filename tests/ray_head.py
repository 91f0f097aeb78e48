"""A Ray head as a process of its own: own session, ports, folder and token."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

RAY = Path(sys.executable).parent / "ray"
TOKEN = "a-token-of-the-tests"
START_S = 120.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more):
    """This process's environment without what it says of Ray, with our token and our Python."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = os.pathsep.join([str(RAY.parent), kept["PATH"]])
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **more}


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def head(folder, port, *options, **variables):
    """A head whose GCS or dashboard listens on `port`, until the block ends.

    Ray's sockets lie in `folder`, and their paths may have 107 characters.
    """
    command = [RAY, "start", "--head", "--block", f"--temp-dir={folder}", *options]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    with open(folder / "head.log", "wb") as log:
        started = subprocess.Popen(
            command,
            env=environment(**variables),
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        # The port answers before the head's own node has joined its cluster.
        while not (answers(port) and "Ray runtime started" in (folder / "head.log").read_text()):
            assert started.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.3)
        yield
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        kill_all_of(folder)


def kill_all_of(folder):
    """End every process that was started with something in `folder`."""
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid():
            process.kill()
