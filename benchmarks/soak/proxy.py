"""An HTTP server in front of another one: it passes everything on, but for what it is told.

Headers go through unchanged: the signature of an S3 request covers its Host.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

BEFORE = {"500": 500, "503 SlowDown": 503}
"""Answers that are given instead of passing the request on."""


class Asked(NamedTuple):
    """A request, before it is passed on."""

    method: str
    path: str
    conditional: bool


class Told(NamedTuple):
    """What became of a request: `status` is None where the client got no whole answer."""

    when: float
    method: str
    path: str
    status: int | None


class _Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


def fits(kind: str, asked: Asked) -> bool:
    """Whether this fault can happen to this request."""
    if kind in ("truncated", "cut short"):
        return asked.method == "GET"
    if kind in ("create lost", "500 after it was done"):
        return asked.method == "PUT" and asked.conditional
    return True


class Proxy:
    """Listens on 127.0.0.1 and passes requests on to `target()`.

    `judge` names the fault of a request, or None; `note` is told what became of it.
    """

    def __init__(
        self,
        target: Callable[[], tuple[str, int]],
        judge: Callable[[Asked], str | None] = lambda asked: None,
        note: Callable[[Told], None] = lambda told: None,
    ) -> None:
        self.target, self.judge, self.note = target, judge, note
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    proxy: Proxy
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is what a soak is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _any(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        conditional = "If-None-Match" in self.headers or "If-Match" in self.headers
        fault = proxy.judge(Asked(self.command, self.path, conditional))
        status = self._treat(fault, body)
        proxy.note(Told(time.time(), self.command, self.path, status))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _any

    def _treat(self, fault: str | None, body: bytes) -> int | None:
        """Pass the request on, with its fault; the status, if the client got all of it."""
        if fault == "delayed":
            time.sleep(random.Random(self.path).uniform(1, 5))
        if fault in BEFORE:
            return self._send(_Answer(BEFORE[fault], [], b"injected"))
        if fault == "reset before":
            return self._reset()
        try:
            answer = self._pass_on(body)
        except (OSError, http.client.HTTPException):  # the server is away
            return self._reset()
        if fault in ("reset after", "create lost"):
            return self._reset()
        if fault == "500 after it was done":
            return self._send(_Answer(500, [], b"injected"))
        if fault == "truncated":
            self._send(answer, half=True)
            return self._reset()
        if fault == "cut short":
            self._send(answer._replace(body=answer.body[: len(answer.body) // 2]))
            return None
        return self._send(answer)

    def _pass_on(self, body: bytes) -> _Answer:
        there = http.client.HTTPConnection(*self.server.proxy.target(), timeout=90)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    there.putheader(name, value)
            there.putheader("Connection", "close")
            there.endheaders(body)
            answer = there.getresponse()
            return _Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            there.close()

    def _send(self, answer: _Answer, half: bool = False) -> int | None:
        hidden = {"connection", "transfer-encoding", "content-length"}
        length = str(len(answer.body))
        if self.command == "HEAD":  # tells of a body that does not come
            length = {k.lower(): v for k, v in answer.headers}.get("content-length", length)
        lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}"]
        lines += [f"{k}: {v}" for k, v in answer.headers if k.lower() not in hidden]
        if answer.status not in (204, 304):
            lines.append(f"Content-Length: {length}")
        body = answer.body[: len(answer.body) // 2] if half else answer.body
        try:
            self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        except OSError:  # the client was killed
            self.close_connection = True
            return None
        return answer.status

    def _reset(self) -> int | None:
        """Close the connection without a word; there is no status."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        return None

    def log_message(self, format: str, *parts: object) -> None:
        """Say nothing."""
