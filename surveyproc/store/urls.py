"""URLs: which clients open them, and how they look in messages and records."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from surveyproc.errors import InputError

# Named, not imported: the libraries behind them take a second, which local surveys need not pay.
for _protocols, _class in ((("s3", "s3a"), "PatientS3"), (("http", "https"), "PatientHTTP")):
    for _protocol in _protocols:
        fsspec.register_implementation(_protocol, f"surveyproc.store.remote.{_class}", clobber=True)


_WEB_LOGIN = re.compile(r"://[^/?#]*@")
_STORE_LOGIN = re.compile(r"://[^/@:]*:[^/]*@")


def is_web(url: str) -> bool:
    """Whether a web server is to be asked: it has no folders, and often no ranges of bytes."""
    return url.startswith(("http://", "https://"))


def fetched(url: str) -> IO[bytes]:
    """A temporary file with all that lies at `url`, gone when it is closed.

    A download is tried again where a stream could not be: what was read of it is used already.
    """
    held = tempfile.NamedTemporaryFile(prefix="surveyproc-")  # noqa: SIM115  # the caller closes it
    try:
        fs, path = fsspec.core.url_to_fs(url)
        fs.get_file(path, held.name)
    except BaseException:
        held.close()
        raise
    return cast(IO[bytes], held)


def opened(fs: Any, path: str) -> IO[bytes]:
    """A binary stream, which can be sought in, over a path of a filesystem.

    Raises
    ------
    InputError
        If it is on the local disk and no regular file.
    """
    if isinstance(fs, LocalFileSystem):
        return opened_here(path)
    return fetched(path) if is_web(path) else cast(IO[bytes], fs.open(path, "rb"))


def opened_here(path: str) -> IO[bytes]:
    """A binary stream over a regular file of the local disk, or a link to one.

    A FIFO waits for ever for somebody to write, and a device may never end: neither is opened.

    Raises
    ------
    InputError
        If it is something else.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        found = next((name for test, name in _IRREGULAR if test(mode)), "something else")
        raise InputError(f"{path}: is {found}, not a regular file; only those are read")
    return open(path, "rb")


_IRREGULAR = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def public_url(url: str) -> str:
    """`url` without what may give access: user, password and the signature in its query.

    What `abfs://` has before its @ is a container, and `?` and `#` may stand in the name of an
    object; only the web has queries.

    Examples
    --------
    >>> public_url("https://me:word@host/a/b.fits?X-Amz-Signature=1f/2e")
    'https://host/a/b.fits'
    >>> public_url("s3://key:word@bucket/tile#1.fits")
    's3://bucket/tile#1.fits'
    >>> public_url("/data/a?b@c.fits")
    '/data/a?b@c.fits'
    """
    if "://" not in url:
        return url
    shown = re.sub(r"[?#].*", "", url, flags=re.DOTALL) if is_web(url) else url
    return _login(url).sub("://", shown)


def holds_login(url: str) -> bool:
    """Whether a URL names a user or a password.

    Examples
    --------
    >>> holds_login("s3://key:word@bucket/a"), holds_login("abfs://container@account/a")
    (True, False)
    """
    return bool(_login(url).search(url))


def _login(url: str) -> re.Pattern[str]:
    return _WEB_LOGIN if is_web(url) else _STORE_LOGIN


def file_name(url: str) -> str:
    """Last part of a path or URL, without a query.

    Examples
    --------
    >>> file_name("https://host/a/b.fits?X-Amz-Signature=1f/2e")
    'b.fits'
    """
    return public_url(url).rstrip("/").rsplit("/", 1)[-1]
