"""Object stores and web servers behind fsspec: patience with faults, errors that say what to do.

`surveyproc.store.urls` registers these classes with fsspec, so that every `s3://` and `http://` URL
opened in a process goes through them, whoever opens it (hats, LSDB, Zarr, Ray Train). What this
module promises:

- An attempt waits `CONNECT_S` for a connection and `READ_S` for the next bytes of an answer.
- What may pass (no connection, a connection that breaks, 429, 5xx, a body cut short) is tried
  again, after waits that double, until `PATIENCE_S` have gone by since the request was made (and
  a second for every `SLOWEST` bytes sent with it). Then `UnreachableError` is raised, and the next
  request to the same store has `IMPATIENCE_S` only, until one is answered.
- A body that breaks off or stops coming is asked for again `BODY_ATTEMPTS` times. The longest that
  a read can take without getting anywhere is thus twice `PATIENCE_S`.
- Refusals (credentials, rights, clock, bucket) are errors at once and named.
- A process keeps at most `CONNECTIONS` open to S3, beside those that read chunks of a cube: as
  many as the cutouts under way touch.
- Nothing is remembered of a listing: other processes write too.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError
from botocore.session import Session
from fsspec.asyn import sync_wrapper
from fsspec.implementations.http import HTTPFileSystem
from obstore.exceptions import GenericError
from obstore.store import S3Store
from s3fs import S3FileSystem

from surveyproc.errors import StoreError, UnreachableError
from surveyproc.store.urls import public_url

CONNECT_S = 5.0
READ_S = 12.0
PATIENCE_S = 60.0
IMPATIENCE_S = 5.0
SLOWEST = 1_000_000
CONNECTIONS = 16
# The first wait is at most this long, each further one twice as long, none longer than the last.
WAITS_S = (0.1, 5.0)
BODY_ATTEMPTS = 5

_TRANSIENT = (
    boto.ConnectionError,
    boto.HTTPClientError,
    ResponseParserError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    ConnectionError,
    TimeoutError,
)
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_TRANSIENT_CODE = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names"
_TOKEN = "the session's credentials have expired: get new ones, then repeat the command"
_REGION = "the bucket lies in another region: set AWS_REGION to it"
_DENIED = (
    "these credentials have no right to {action} here: use others, or ask whoever runs the "
    "bucket (listing, reading and, under survey.root, writing and deleting are needed)"
)
_REFUSALS = {
    "NoSuchBucket": "there is no such bucket: create it, or correct the URL",
    "InvalidAccessKeyId": f"the store does not know the access key: {_KEYS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key: {_KEYS}",
    "RequestTimeTooSkewed": (
        "this machine's clock differs too much from the store's: set it (NTP), then repeat the "
        "command"
    ),
    "ExpiredToken": _TOKEN,
    "InvalidToken": _TOKEN,
    "TokenRefreshRequired": _TOKEN,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
}


def is_transient(error: BaseException) -> bool:
    """Whether what failed may succeed when it is tried again."""
    if isinstance(error, UnreachableError):
        return False
    status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
    code, answered = _answer(error)
    known = code in _TRANSIENT_CODE or (status or answered) in _TRANSIENT_STATUS
    return known or isinstance(error, _TRANSIENT)


def _answer(error: BaseException) -> tuple[str, int]:
    """Error code and HTTP status of S3's answer; an empty string and 0 if there was none."""
    response = getattr(error.__cause__ or error, "response", None)
    if not isinstance(response, dict):
        return "", 0
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", "")), int(status)


class _Patience:
    """Tries requests to one store again and again, as the module promises."""

    def __init__(self) -> None:
        self.gave_up = False

    async def __call__(
        self, where: str, attempt: Callable[[], Awaitable[Any]], nbytes: int = 0
    ) -> Any:
        """The result of `attempt`, which sends `nbytes`; `where` names the object in the error."""
        seconds = (IMPATIENCE_S if self.gave_up else PATIENCE_S) + nbytes / SLOWEST
        wait, failure = WAITS_S[0], "no answer"
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        answer = await attempt()
                    except Exception as error:
                        if not is_transient(error):
                            raise
                        failure = str(error) or type(error).__name__
                    else:
                        self.gave_up = False
                        return answer
                    # Drawn at random, or all processes would come back at the same moment.
                    await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                    wait = min(2 * wait, WAITS_S[1])
        except TimeoutError as error:
            self.gave_up = True
            raise UnreachableError(
                f"{where} could not be reached for {seconds:.0f} s ({failure}): check the network "
                "and the store, then repeat the command; what was finished is kept"
            ) from error


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """s3fs, with the promises of this module."""

    connect_timeout, read_timeout, retries = CONNECT_S, READ_S, BODY_ATTEMPTS

    def __init__(self, *args: Any, **options: Any) -> None:
        # One attempt a request: `_Patience` counts the time. One request a whole object: s3fs
        # would ask for its size first, to read it in parts; workers are what runs in parallel.
        config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": CONNECTIONS}
        options["config_kwargs"] = {**config, **(options.get("config_kwargs") or {})}
        super().__init__(*args, **{"max_concurrency": 1, "use_listings_cache": False, **options})
        self._patience = _Patience()

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        call = super()._call_s3
        attempts = 0

        async def attempt() -> Any:
            nonlocal attempts
            attempts += 1
            try:
                answer = await call(method, *akwarglist, **kwargs)
            except Exception as error:
                if _answer(error)[0] == "NoSuchUpload" and attempts > 1:
                    # The answer to an earlier attempt was lost: the upload is complete.
                    return await call("head_object", Bucket=kwargs["Bucket"], Key=kwargs["Key"])
                raise
            if method == "delete_objects" and answer.get("Errors"):
                # The request succeeds even if no object was deleted, and s3fs looks no further.
                raise boto.ClientError({"Error": answer["Errors"][0]}, "DeleteObjects")
            return answer

        try:
            body = kwargs.get("Body")
            nbytes = len(body) if isinstance(body, bytes | bytearray | memoryview) else 0
            return await self._patience(self._place(kwargs), attempt, nbytes)
        except Exception as error:
            refusal = await self._refusal(error, method, kwargs)
            if refusal is None:
                raise
            raise refusal from error

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_tagged(self, path: str) -> tuple[bytes, str]:
        """Content and ETag of an object by one request: of the same version, however stale."""
        bucket, key, _ = self.split_path(path)
        place = {"Bucket": bucket, "Key": key}

        async def attempt() -> tuple[bytes, str]:
            answer = await self._call_s3("get_object", **place)
            return await answer["Body"].read(), answer["ETag"]

        found: tuple[bytes, str] = await self._patience(self._place(place), attempt)
        return found

    cat_tagged = sync_wrapper(_cat_tagged)

    def _place(self, request: dict[str, Any]) -> str:
        parts = [str(request[name]) for name in ("Bucket", "Key") if request.get(name)]
        # There is no client before the first request.
        at = f" at {public_url(self._s3.meta.endpoint_url)}" if self._s3 is not None else ""
        return f"s3://{'/'.join(parts)}{at}"

    async def _refusal(
        self, error: Exception, method: str, request: dict[str, Any]
    ) -> StoreError | None:
        """The named error of a refusal; None if it is none."""
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            return StoreError(f"{self._place(request)}: no credentials were found: {_KEYS}")
        code, status = _answer(error)
        if method == "head_object" and status in (400, 403):
            # The answer to HEAD has no text; that to a listing says what is wrong.
            try:
                await super()._call_s3("list_objects_v2", Bucket=request["Bucket"], MaxKeys=1)
            except Exception as told:
                code = _answer(told)[0] or code
        text = _REFUSALS.get(code)
        if text is None:
            return None
        writes = method.startswith(("put", "create", "upload", "complete", "delete", "copy"))
        action = "write" if writes else "read"
        return StoreError(f"cannot {action} {self._place(request)}: {text.format(action=action)}")


class PatientHTTP(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's web client; it keeps the promises of this module for whole files."""

    def __init__(self, *args: Any, **options: Any) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        options["client_kwargs"] = {"timeout": timeout, **(options.get("client_kwargs") or {})}
        super().__init__(*args, **{"use_listings_cache": False, **options})
        self._patience = _Patience()

    async def _info(self, url: str, **kwargs: Any) -> Any:
        call = super()._info
        return await self._patience(public_url(url), lambda: call(url, **kwargs))

    async def _get_file(self, rpath: str, lpath: Any, **kwargs: Any) -> None:
        # A download may rightly take longer than patience lasts: it has some attempts in any case.
        until = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(1):
            try:
                await super()._get_file(rpath, lpath, **kwargs)
                return
            except Exception as error:
                out_of_time = time.monotonic() > until and attempt >= BODY_ATTEMPTS
                if out_of_time or not is_transient(error):
                    raise
            await asyncio.sleep(min(WAITS_S[0] * 2**attempt, WAITS_S[1]))


class _Credentials:
    """What s3fs signs with, for obstore, which knows no profiles."""

    def __init__(self, fs: PatientS3) -> None:
        session = Session(profile=fs.kwargs.get("profile"))
        if fs.key:
            session.set_credentials(fs.key, fs.secret, fs.token)
        self._found = session.get_credentials()

    def __call__(self) -> dict[str, Any]:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # Asked again after this; botocore renews what expires.
            "expires_at": datetime.now(UTC) + timedelta(minutes=10),
        }


def is_out_of_reach(error: Exception) -> bool:
    """Whether a `chunk_store` gave up because the store did not answer; refusals have names."""
    return isinstance(error, GenericError)


def chunk_store(fs: PatientS3, path: str) -> S3Store:
    """The folder `path` (bucket and prefix) for reading chunks: twice as fast as through s3fs.

    It has endpoint, region and credentials of `fs`, and the patience of this module.
    """
    bucket, _, prefix = path.partition("/")
    client = fs.s3.meta
    options: Any = {
        "endpoint": client.endpoint_url,
        "region": client.region_name,
        "client_options": {
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=READ_S),
            "timeout": timedelta(seconds=PATIENCE_S),
            "allow_http": client.endpoint_url.startswith("http://"),
        },
        "retry_config": {
            # Time is what counts, not attempts.
            "max_retries": 1_000_000,
            "retry_timeout": timedelta(seconds=PATIENCE_S),
            "backoff": {
                "init_backoff": timedelta(seconds=WAITS_S[0]),
                "max_backoff": timedelta(seconds=WAITS_S[1]),
            },
        },
    }
    options |= {"skip_signature": True} if fs.anon else {"credential_provider": _Credentials(fs)}
    return S3Store(bucket, prefix=prefix, **options)
