"""A proxy in front of an object store that counts requests and injects faults."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
Version = tuple[bytes, str]
"""Content and ETag of an object."""
ERROR = "<?xml version='1.0'?><Error><Code>{0}</Code><Message>{0}, said the proxy</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """Shares of requests (0 to 1) that meet each fault; at most one fault a request.

    Attributes
    ----------
    error : float
        500 InternalError, in half of the cases after the store did what was asked.
    slow_down : float
        503 SlowDown or 429.
    reset : float
        The connection breaks, in half of the cases after the store did what was asked.
    truncate : float
        Half of the answer's body, then the connection breaks.
    delay : float
        The answer comes `delay_s` later.
    stale : float
        A read of a whole object gives what it was before it was last overwritten through the proxy.
    """

    error: float = 0.0
    slow_down: float = 0.0
    reset: float = 0.0
    truncate: float = 0.0
    delay: float = 0.0
    stale: float = 0.0
    delay_s: float = 0.5

    KINDS = ("error", "slow_down", "reset", "truncate", "delay", "stale")

    @classmethod
    def all(cls, share: float) -> Faults:
        """Every kind with the same share."""
        return cls(*(share,) * len(cls.KINDS))

    def draw(self, rng: random.Random) -> str:
        """Name of the fault that a request meets, or an empty string."""
        place = rng.random()
        for kind in self.KINDS:
            place -= getattr(self, kind)
            if place < 0:
                return kind
        return ""


@dataclass(frozen=True)
class Request:
    """One request as it came: HTTP method (LIST for listings), bucket, key, the fault it met."""

    method: str
    bucket: str
    key: str
    fault: str


class Proxy:
    """A proxy on a free port of this machine; use it as a context.

    Attributes
    ----------
    faults : Faults
        May be changed at any time.
    refuse : (int, str) or None
        Status and error code of every answer; the store is not asked.
    gone : bool
        Every connection breaks at once.
    silent : bool
        Connections are taken and nothing is ever answered.
    unconditional : bool
        Conditional puts are answered by 501, as by stores that do not know them.
    requests : list of Request
        All that came, in order.
    """

    def __init__(self, port: int, faults: Faults | None = None, seed: int = 0) -> None:
        self.port, self.faults = port, faults or Faults()
        self.refuse: tuple[int, str] | None = None
        self.gone = self.silent = self.unconditional = False
        self.requests: list[Request] = []
        self.former: dict[str, Version] = {}
        self._latest: dict[str, Version] = {}
        self._rng, self._lock = random.Random(seed), threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def counts(self, prefix: str = "") -> Counter[str]:
        """Requests by method, of keys that begin with `prefix`."""
        return Counter(one.method for one in self.requests if one.key.startswith(prefix))

    def met(self) -> Counter[str]:
        """Requests by the fault they met."""
        return Counter(one.fault for one in self.requests if one.fault)

    def arrived(self, method: str, path: str) -> str:
        """Note a request; the fault it meets."""
        parts = urlsplit(path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        if "list-type" in query:
            method, key = "LIST", query.get("prefix", [""])[0]
        with self._lock:
            fault = self.faults.draw(self._rng)
            self.requests.append(Request(method, bucket, key, fault))
        return fault

    def coin(self) -> bool:
        """True or false, with equal chances."""
        with self._lock:
            return self._rng.random() < 0.5

    def wrote(self, path: str, version: Version) -> None:
        """Note what an object is now, and what it was before."""
        with self._lock:
            if path in self._latest:
                self.former[path] = self._latest[path]
            self._latest[path] = version


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.store = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)

    def finish(self) -> None:
        self.store.close()
        super().finish()

    def serve(self) -> None:
        if self.proxy.gone:
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.arrived(self.command, self.path)
        while self.proxy.silent:
            time.sleep(0.02)
        if self.proxy.unconditional and {"If-Match", "If-None-Match"} & set(self.headers):
            self.answer(501, "NotImplemented")
        elif self.proxy.refuse:
            self.answer(*self.proxy.refuse)
        elif fault == "slow_down":
            self.answer(*((503, "SlowDown") if self.proxy.coin() else (429, "TooManyRequests")))
        elif fault == "error":
            if self.proxy.coin():
                self.forward(body)
            self.answer(500, "InternalError")
        elif fault == "reset":
            if self.proxy.coin():
                self.forward(body)
            self.close_connection = True
        else:
            if fault == "delay":
                time.sleep(self.proxy.faults.delay_s)
            self.relay(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        for attempt in range(2):
            try:
                # The host is part of the signature, so it stays the one that the client named.
                self.store.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    if name.lower() not in HOP:
                        self.store.putheader(name, value)
                self.store.putheader("Content-Length", str(len(body)))
                self.store.endheaders(body)
                answer = self.store.getresponse()
                content = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self.store.close()  # the store may end a connection that was idle
                if attempt:
                    raise
        if self.command == "PUT" and answer.status == 200 and "?" not in self.path:
            # A bucket that is made has no tag.
            self.proxy.wrote(self.path, (body, answer.getheader("ETag", "")))
        return answer.status, answer.getheaders(), content

    def relay(self, body: bytes, fault: str) -> None:
        status, headers, content = self.forward(body)
        former = self.proxy.former.get(self.path.partition("?")[0])
        if fault == "stale" and former and self.command == "GET" and "Range" not in self.headers:
            content, tag = former
            own = [one for one in headers if not one[0].lower().startswith(("etag", "x-amz-check"))]
            headers = [*own, ("ETag", tag)]
        length = next((v for k, v in headers if k.lower() == "content-length"), "0")
        size = length if self.command == "HEAD" else str(len(content))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        if fault == "truncate" and content:
            content, self.close_connection = content[: len(content) // 2], True
        if self.command != "HEAD":
            try:
                self.wfile.write(content)
            except ConnectionError:
                self.close_connection = True  # the client has given up

    def answer(self, status: int, code: str) -> None:
        content = b"" if self.command == "HEAD" else ERROR.format(code).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
