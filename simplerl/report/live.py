"""A page that follows a run, served on this machine only. It only reads run folders."""

from __future__ import annotations

import fcntl
import gzip
import sys
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from simplerl.errors import DataError, SimpleRLError
from simplerl.formatting import to_utf8
from simplerl.report.page import FRAME, render_page
from simplerl.report.progress import progress
from simplerl.report.report import render_report
from simplerl.report.run_data import read_run
from simplerl.storage.records import RunFolder

HOST = "127.0.0.1"
REST = 5.0
"""Fewest seconds between two versions of the page."""
SHARE = 0.25
"""Largest share of one core spent on pages: the run needs the machine."""

State = Literal["waiting", "training", "stopped", "finished"]
_WATCHED = ("recipe.toml", "environment.json", "metrics.jsonl", "evals.jsonl", "validation.jsonl", "events.jsonl")


@dataclass(frozen=True)
class Page:
    """A finished page, compressed, and the version of the run's files that it shows."""

    version: str
    body: bytes
    is_report: bool = False


class LivePage:
    """The newest page of a run, made on request and only if something has changed."""

    def __init__(self, run: Path, rest: float = REST) -> None:
        self.run, self.rest = run, rest
        self.lock = threading.Lock()
        self.made = Page("", b"")
        self.not_before = 0.0
        self.trouble = ""

    def page(self) -> bytes:
        """The page as compressed HTML."""
        with self.lock:
            if (version := self._version()) != self.made.version:
                used = time.thread_time()
                self.made = self._make(version)
                used = time.thread_time() - used
                self.not_before = time.monotonic() + max(self.rest, used * (1 - SHARE) / SHARE)
            return self.made.body

    def status(self) -> dict[str, str]:
        """The version that `page` would return now, and the state of the run."""
        state, text = run_state(self.run)
        return {"version": self._version(), "state": state, "text": self.trouble or text}

    def _version(self) -> str:
        if self.made.version and time.monotonic() < self.not_before:
            return self.made.version
        return fingerprint(self.run)

    def _make(self, version: str) -> Page:
        """The report. If it cannot be made now: the one before, or a page that says why."""
        try:
            page, self.trouble = Page(version, _packed(render_report([read_run(self.run)], live=version)), True), ""
        except DataError:
            self.trouble = ""
            page = self._excuse(version, run_state(self.run)[1])
        # a resumed run removes files while they are read
        except (SimpleRLError, OSError, ValueError) as error:
            self.trouble = str(error)
            page = self._excuse(version, self.trouble)
        return page

    def _excuse(self, version: str, reason: str) -> Page:
        if self.made.is_report:
            return self.made
        return Page(version, _packed(render_page("waiting.html.j2", live=version, title=self.run.name, reason=reason)))


def _packed(html: str) -> bytes:
    return gzip.compress(to_utf8(html), 5)


def fingerprint(run: Path) -> str:
    """Changes with every new step, evaluation or session."""
    return sha256(repr([_stamp(run / name) for name in _WATCHED]).encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


# --- the run ----------------------------------------------------------------------------------------------------------


def run_state(run: Path) -> tuple[State, str]:
    """True if a process is training, and the run's progress as text."""
    folder = RunFolder(run)
    try:
        where, finished = progress(folder.read_metrics(), folder.read_recipe() if folder.exists else {})
    except SimpleRLError as error:
        return "stopped", str(error)
    if not folder.exists:
        return "waiting", f"Waiting for a run in {run}."
    if is_held(run):
        return "training", f"Training: {where} done."
    if finished:
        return "finished", f"Finished: {where} done."
    return "stopped", f"No process is training here; {where} done. This page keeps watching."


def is_held(run: Path) -> bool:
    """True if a process locks the run's folder, see `simplerl.storage.files.locked`; the lock ends with the process."""
    try:
        file = open(run / ".lock", "rb")  # noqa: SIM115
    except OSError:
        return False
    with file:
        try:
            # for a moment only, and shared; a run that starts right now waits longer than that
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


# --- the server -------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves one run's page on this machine."""

    def __init__(self, run: Path, port: int, rest: float = REST) -> None:
        self.live = LivePage(run, rest)
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that has disconnected."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """`/` is the page, `/status` its version; nothing else exists."""

    server: Server
    server_version, sys_version = "simplerl", ""
    timeout = 30

    def do_GET(self) -> None:
        if not self._is_for_us():
            self._answer(403, "text/plain", f"this server answers at {self.server.url} only\n".encode())
        elif (path := urlsplit(self.path).path) == "/":
            self._answer(200, "text/html; charset=utf-8", self.server.live.page(), compressed=True)
        elif path == "/status":
            self._answer(200, "application/json", orjson.dumps(self.server.live.status()))
        else:
            self._answer(404, "text/plain", b"there is only / here\n")

    def _is_for_us(self) -> bool:
        """True for a request from another site, whose name may resolve to this address; its header shows that name."""
        wanted = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        hosts = self.headers.get_all("Host", [])
        return len(hosts) == 1 and hosts[0] in wanted

    def _answer(self, code: int, kind: str, body: bytes, *, compressed: bool = False) -> None:
        if compressed and "gzip" not in self.headers.get("Accept-Encoding", ""):
            body, compressed = gzip.decompress(body), False
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store", **FRAME}
        for name, value in (headers | ({"Content-Encoding": "gzip"} if compressed else {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log no requests."""
