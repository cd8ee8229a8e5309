"""A real HTTP server on 127.0.0.1 whose answers and failures a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    """An answer, or a failure.

    `mode`: the full answer; or the connection is dropped without one, cut in the middle of it, stalls, sends one byte
    at a time, or sends bytes without end.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    mode: Literal["full", "drop", "tear", "stall", "drip", "flood"] = "full"

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class Service:
    """Answers with `answer(question)`. Records posted objects and headers in the order of arrival."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply], port: int = 0) -> None:
        self.answer = answer
        self.posted: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler_of(self))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ask"

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def replies(*queue: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Give these replies in order, and the last one again for every later request."""
    left = list(queue)
    return lambda question: left.pop(0) if len(left) > 1 else left[0]


def handler_of(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = 30

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with service.lock:
                service.posted.append(question)
                service.headers.append(dict(self.headers))
            reply = service.answer(question)
            self.close_connection = reply.mode != "full"
            if reply.mode == "stall":
                service.released.wait(30)
            elif reply.mode != "drop":
                self.send(reply)

        def send(self, reply: Reply) -> None:
            extra = {"tear": 10, "drip": 10**6, "flood": 10**12}.get(reply.mode, 0)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.content) + extra), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.content)
            while reply.mode == "drip" and not service.released.wait(0.02):
                self.wfile.write(b" ")
            while reply.mode == "flood":
                self.wfile.write(b" " * 65536)

        def handle(self) -> None:
            # The client may have closed the connection.
            with suppress(ConnectionError):
                super().handle()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
