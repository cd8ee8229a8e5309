"""The hub, against a server on 127.0.0.1 that speaks as much of its protocol as `datasets` asks for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

COMMIT = "c" * 40
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="the package `datasets` is missing: pip install 'simplerl[hub]'",
)
needs_data = pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="SIMPLERL_DATA, the published sets, is unset")


class FakeHub:
    """Data sets as {repo: {path: bytes}}, served under `url`; every request is noted in `paths`."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos, self.paths = repos, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.paths.append(f"{request.command} {request.path}")
        path = request.path.partition("?")[0]
        for pattern, handle in (
            (r"/api/datasets/([^/]+/[^/]+?)(?:/revision/[^/]+)?", self._info),
            (r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", self._tree),
            (r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", lambda r, repo: self._paths_info(r, repo, body)),
            (r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._file),
        ):
            match = re.fullmatch(pattern, path)
            if match and match[1] in self.repos:
                return handle(request, *match.groups())
        self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _info(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        siblings = [{"rfilename": name} for name in self.repos[repo]]
        self._json(request, {"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})

    def _tree(self, request: BaseHTTPRequestHandler, repo: str, folder: str | None) -> None:
        start = f"{folder}/" if folder else ""
        below = {name: name.removeprefix(start) for name in sorted(self.repos[repo]) if name.startswith(start)}
        folders = {start + rest.partition("/")[0] for rest in below.values() if "/" in rest}
        entries = [{"type": "directory", "path": name, "size": 0, "oid": COMMIT} for name in sorted(folders)]
        self._json(request, entries + [self._entry(repo, name) for name, rest in below.items() if "/" not in rest])

    def _paths_info(self, request: BaseHTTPRequestHandler, repo: str, body: bytes) -> None:
        text = body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else re.findall(r"paths=([^&]*)", text)
        names = [name.replace("%2F", "/") for name in ([wanted] if isinstance(wanted, str) else wanted)]
        self._json(request, [self._entry(repo, name) for name in names if name in self.repos[repo]])

    def _entry(self, repo: str, name: str) -> dict[str, Any]:
        content = self.repos[repo][name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _file(self, request: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        content = self.repos[repo].get(name)
        if content is None:
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self._send(request, 200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _json(self, request: BaseHTTPRequestHandler, value: Any) -> None:
        self._send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    fake = FakeHub({})
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def simplerl_data(hub_url: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`simplerl data ...` in a process of its own: the hub's client reads its address when it is imported."""
    program = """
import sys
from simplerl.cli.data import app
from simplerl.errors import SimpleRLError
try:
    app()
except SimpleRLError as error:
    sys.exit(f"error: {error}")
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SIMPLERL_"))}
    env |= {"HF_ENDPOINT": hub_url, "HF_HOME": str(home / "hf"), "SIMPLERL_CACHE": str(home / "cache")}
    return subprocess.run([sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True)


def gsm8k_on_the_hub(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, bytes]:
    card = (
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: test\n    path: main/test-*\n- config_name: socratic\n  data_files:\n  - split: train\n"
        "    path: socratic/train-*\n---\n"
    )
    return {
        "README.md": card.encode(),
        "main/train-00000-of-00001.parquet": as_parquet(train),
        "main/test-00000-of-00001.parquet": as_parquet(test),
        "socratic/train-00000-of-00001.parquet": as_parquet([{"question": "socratic", "answer": "#### 0"}]),
    }


def test_any_set_of_the_hub_with_a_key_mapping(hub: FakeHub, tmp_path: Path) -> None:
    rows = [{"extra_info": {"question": f"{n}+1", "answer": n + 1}, "level": f"Level {n}"} for n in range(3)]
    hub.repos["me/sums"] = {"easy/train.parquet": as_parquet(rows), "hard/train.parquet": as_parquet(rows[:1])}
    settings = ("repo=me/sums", "file=easy/train.parquet", "keys.question=extra_info.question")
    arguments = [part for s in (*settings, "keys.answer=extra_info.answer") for part in ("--set", s)]
    done = simplerl_data(hub.url, tmp_path, "show", "hub", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    problems = json.loads(done.stdout)
    assert [(p["id"], p["question"], p["answer"], p["level"]) for p in problems] == [
        (f"me/sums/{n}", f"{n}+1", str(n + 1), n) for n in range(3)
    ]


def test_a_set_that_differs_from_the_published_one_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    row = {"question": "1+1?", "answer": "One and one.\n#### 2"}
    hub.repos["openai/gsm8k"] = gsm8k_on_the_hub([row] * 7473, [row] * 3)
    done = simplerl_data(hub.url, tmp_path, "show", "gsm8k")
    assert done.returncode == 1
    assert re.search("questions or answers of openai/gsm8k.* sha256 [0-9a-f]{64}, should be e87469c4", done.stderr)
    done = simplerl_data(hub.url, tmp_path, "show", "gsm8k", "--benchmark")
    assert "openai/gsm8k has 3 rows, the published set 1,319" in done.stderr
    assert not (tmp_path / "cache").exists(), "nothing was kept"


def test_a_set_the_hub_does_not_have(hub: FakeHub, tmp_path: Path) -> None:
    done = simplerl_data(hub.url, tmp_path, "prepare", "math500")
    assert done.returncode == 1
    assert "math500 (test) not found" in done.stderr
    assert "HuggingFaceH4/MATH-500, split 'test': DatasetNotFoundError" in done.stderr


@needs_data
def test_gsm8k_from_the_hub_is_the_published_set(hub: FakeHub, tmp_path: Path) -> None:
    """The published rows in the hub's form, through its protocol and the conversion, have the pinned checksum."""
    from simplerl.data.base import load_benchmark, load_source, source_config

    train, test = load_source(source_config("gsm8k")), load_benchmark("gsm8k")
    hub.repos["openai/gsm8k"] = gsm8k_on_the_hub(
        *([{"question": p.question, "answer": p.solution} for p in problems] for problems in (train, test))
    )
    done = simplerl_data(hub.url, tmp_path, "prepare", "gsm8k", "--json")
    assert done.returncode == 0, done.stderr
    assert [(r["rows"], r["origin"], r["pinned"]) for r in json.loads(done.stdout)] == [
        (7473, "hub:openai/gsm8k", True),
        (1319, "hub:openai/gsm8k", True),
    ]
    hub.server.shutdown()
    again = simplerl_data("http://127.0.0.1:9", tmp_path, "show", "gsm8k", "--benchmark", "--json", "--n", "1")
    assert json.loads(again.stdout)[0]["id"] == "gsm8k_test/0", "from the cache, without the hub"
