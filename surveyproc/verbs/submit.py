"""A verb as a job on a Ray cluster, through its jobs API: submitted, followed, stopped.

A job gets a working directory of its own. It holds survey.toml, this package, the packages that
bring the survey's other products and networks, and nothing else: images, catalogs, stores and the
rest of virtual environments are never looked at, wherever they lie.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from surveyproc.config import SurveyConfig
from surveyproc.errors import ClusterError, ConfigError, InputError
from surveyproc.store.urls import holds_login
from surveyproc.verbs.plugins import plugin_files

# They tell of uploads and closed sockets.
for _module in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private"):
    logging.getLogger(f"ray.{_module}").setLevel(logging.WARNING)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
MAX_BYTES = 20 * 1024**2
"""Most bytes a job's working directory may have; the package has about one megabyte."""
CONNECT_S = 15.0
POLL_S = 0.5
STOP_S = 60.0

_PACKAGE = Path(__file__).parent.parent
_IGNORED = ("__pycache__", ".*")


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes
    ----------
    job, address : str
        Its id, and the URL of the cluster's dashboard.
    status : str
        `SUCCEEDED`, `FAILED` or `STOPPED`.
    exit_code : int or None
        Of its command, as shells say it; None if the cluster does not know.
    message : str
        What the cluster says of it.
    """

    job: str
    address: str
    status: str
    exit_code: int | None
    message: str


class Cluster:
    """The jobs API of one Ray cluster.

    Parameters
    ----------
    address : str, optional
        URL of the cluster's dashboard. By default what `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS`
        say, else port 8265 of this machine.

    Raises
    ------
    ClusterError
        If no cluster answers there, or it does not take our token.
    """

    def __init__(self, address: str | None = None) -> None:
        named = (os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))
        self.address = (address or next(filter(None, named), DEFAULT_ADDRESS)).rstrip("/")
        _knock(self.address)
        headers = _token_header()
        # Ray lets this variable, and otherwise RAY_ADDRESS, beat the argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        with self._talking():
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(
        self,
        config: SurveyConfig,
        survey: Path,
        verb: str,
        overrides: Sequence[str] = (),
        install: bool = False,
    ) -> str:
        """Start `verb` on the cluster and return the job's id.

        Parameters
        ----------
        config : SurveyConfig
            What `survey` says, overrides applied.
        survey : Path
            The survey.toml to ship.
        verb : str
            The verb to run there.
        overrides : sequence of str
            `section.key=value` items for the job's `--set`.
        install : bool
            Whether Ray first installs this package's dependencies on the nodes, for clusters whose
            image lacks them.

        Raises
        ------
        ConfigError
            If survey.toml names a path that means nothing in another working directory, or a
            package that a product uses cannot be shipped.
        InputError
            If there is more to ship than `MAX_BYTES`.
        ClusterError
            If the cluster does not take the job.
        """
        check_portable(config)
        sets = [part for item in overrides for part in ("--set", item)]
        environment: dict[str, Any] = {
            "env_vars": {k: v for k, v in os.environ.items() if k.startswith("SURVEYPROC_")}
        }
        if install:
            environment["pip"] = _dependencies()
        with tempfile.TemporaryDirectory() as folder:
            pack(config, survey, Path(folder))
            with self._talking():
                return self._client.submit_job(
                    entrypoint=f"{_interpreter(install)} -m surveyproc "
                    + shlex.join([verb, survey.name, *sets]),
                    runtime_env={**environment, "working_dir": folder},
                )

    def follow(self, job: str, show: Callable[[str], None]) -> JobEnd:
        """Hand the job's log to `show` as it grows; when the job has ended, say how.

        Raises
        ------
        ClusterError
            If there is no such job or the cluster is lost.
        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job):
                show(text)

        with self._talking(job):
            asyncio.run(tail())
            while (outcome := self._outcome(job)) is None:
                time.sleep(POLL_S)
        return outcome

    def stop(self, job: str) -> JobEnd:
        """End the job, wait until it has ended and say how; nothing happens if it had already.

        Raises
        ------
        ClusterError
            If there is no such job, the cluster is lost or the job does not end.
        """
        with self._talking(job):
            self._client.stop_job(job)
            deadline = time.monotonic() + STOP_S
            while (outcome := self._outcome(job)) is None:
                if time.monotonic() > deadline:
                    raise ClusterError(f"{self.address}: job {job} does not end; try again")
                time.sleep(POLL_S)
        return outcome

    def _outcome(self, job: str) -> JobEnd | None:
        """How the job ended; None if it goes on."""
        info = self._client.get_job_info(job)
        if not info.status.is_terminal():
            return None
        code = 0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code
        if code is not None and code < 0:
            code = 128 - code  # a signal, as shells say it
        # What follows is the end of the log.
        message = (info.message or "").partition(", last available logs")[0]
        return JobEnd(job, self.address, str(info.status), code, message.strip())

    @contextmanager
    def _talking(self, job: str | None = None) -> Iterator[None]:
        """What may go wrong between us and the cluster, as errors that say what to do."""
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(
                f"{self.address}: the cluster refused our token: set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file that holds it, to the token the cluster was started "
                "with (without either, ~/.ray/auth_token is read)"
            ) from error
        except (OSError, RuntimeError, ValueError, KeyError, aiohttp.ClientError) as error:
            if job and "status code 404" in str(error):
                raise ClusterError(f"{self.address}: there is no job {job}") from error
            state = (
                f"; job {job} may go on there (ray job status {job}); if the cluster is gone, what "
                "was finished is kept: submit it again"
                if job
                else ""
            )
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(
                f"{self.address}: the cluster's jobs API failed: {said[0]}{state}"
            ) from error


def pack(config: SurveyConfig, survey: Path, folder: Path) -> int:
    """Fill the empty `folder` with what a job needs; returns its size in bytes.

    That is survey.toml, the package with its schemas, the packages of `plugins.plugin_files`, and
    the metadata of all, so that the code that runs there is the code that was submitted, also where
    another version is installed.

    Raises
    ------
    ConfigError
        As `plugins.plugin_files`.
    InputError
        If that is more than `MAX_BYTES`.
    """
    sources = {survey.name: survey, "surveyproc": _PACKAGE}
    schemas = _PACKAGE.parent / "schemas"
    if not (_PACKAGE / "_schemas").is_dir():
        sources["schemas"] = schemas
    others = plugin_files(config)
    shipped = [*others.values(), *(file for one in sources.values() for file in _files(one))]
    sizes = {file: file.stat().st_size for file in shipped}
    if (total := sum(sizes.values())) > MAX_BYTES:
        largest = max(sizes, key=lambda file: sizes[file])
        raise InputError(
            "submit ships survey.toml, the package and those that bring products or networks, at "
            f"most {MAX_BYTES / 1e6:.0f} MB, and found {total / 1e6:.0f} MB; the largest file is "
            f"{largest}: move it elsewhere"
        )
    # Ours last: no other package takes the place of what is ours.
    for name, file in others.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / name)
    ignore = shutil.ignore_patterns(*_IGNORED)
    for name, source in sources.items():
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / name)
    ours = distribution("surveyproc")
    metadata = folder / f"surveyproc-{ours.version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(ours.read_text("METADATA") or "")
    return total


def _interpreter(install: bool) -> str:
    """How the job's shell finds Python: the one of this command where it is there too.

    What Ray installs has an environment of its own, whose `python` comes first in the path.
    """
    ours = shlex.quote(sys.executable)
    return "python" if install else f'"$(command -v {ours} || echo python)"'


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    for folder, below, names in os.walk(source):
        below[:] = [name for name in below if name != "__pycache__" and not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def check_portable(config: SurveyConfig) -> None:
    """Refuse settings that a job could not use, or must not hold.

    A relative path is relative to survey.toml here and would lead into the job's own folder, whose
    content is lost when the cluster ends.

    Raises
    ------
    ConfigError
        If a path is relative or a URL holds a user name or password.
    """
    places = [
        ("survey.root", config.survey.root),
        *(("images.tiles", tiles) for tiles in config.images.tiles),
        ("catalog.source", config.catalog.source),
    ]
    if config.truth is not None:
        places.append(("truth.source", config.truth.source))
    for product in config.networks:
        if "/" in product.model:
            places.append((f"products.{product.name}.model", product.model))
        if product.training is not None:
            for key in ("source", "images"):
                if place := getattr(product.training, key):
                    places.append((f"products.{product.name}.training.{key}", place))
            if "/" in (start := product.training.start or ""):
                places.append((f"products.{product.name}.training.start", start))
    for key, place in places:
        _refuse_login(key, place)
    lost = [f"{key} = {place!r}" for key, place in places if not _is_portable(place)]
    if lost:
        raise ConfigError(
            "submit: a job runs in a folder of its own on the cluster, where relative paths lead "
            f"nowhere: {', '.join(lost)}. Write URLs or absolute paths that every node sees, in "
            "survey.toml or with --set"
        )


def _refuse_login(where: str, url: str) -> None:
    """Commands and settings of jobs are read by all who use the cluster, and shown in logs."""
    if holds_login(url):
        raise ConfigError(
            f"{where}: this URL holds a user name or password; take it out. A job finds "
            "credentials where it runs: in the environment, the profile or the role of its machine"
        )


def _is_portable(place: str) -> bool:
    return "://" in place or place.startswith("/")


def _dependencies() -> list[str]:
    """What the package needs, less Ray: a job's Ray must be the cluster's."""
    wanted = distribution("surveyproc").requires or []
    return [item for item in wanted if not item.startswith("ray") and "extra ==" not in item]


def _knock(address: str) -> None:
    """Connect once: Ray would wait for minutes for an address that swallows what it is sent."""
    _refuse_login("submit --address", address)
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    except ValueError as error:
        raise ClusterError(f"submit --address: {address!r} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not host:
        raise ClusterError(
            f"submit --address: {address!r} is not the URL of a Ray dashboard, such as "
            f"{DEFAULT_ADDRESS}"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error}): name its dashboard with --address; "
            "one on loopback of another machine is reached through a tunnel "
            "(ssh -L 8265:127.0.0.1:8265 HOST, ray dashboard, kubectl port-forward)"
        ) from error


def _token_header() -> dict[str, str]:
    """The token, looked for where Ray looks, as the header that carries it; {} if there is none.

    Ray itself does so only where `RAY_AUTH_MODE` was set before it was imported, and ends the
    process if it cannot read the file. A cluster without tokens ignores the one it is sent.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if not token and (named or file.is_file()):
        try:
            token = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ClusterError(
                f"the token of the Ray cluster cannot be read: {error}; name its file with "
                "RAY_AUTH_TOKEN_PATH"
            ) from error
        if not token:
            raise ClusterError(f"{file} is empty; write the token of the Ray cluster into it")
    return {"Authorization": f"Bearer {token}"} if token else {}
