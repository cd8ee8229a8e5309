"""The description of the machine is plain JSON, correct, and never raises."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

import simplerl
from simplerl import environment


def test_an_entry_is_plain_json_with_versions_threads_and_variables(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    entry = json.loads(json.dumps(environment.describe_environment()))

    assert entry["simplerl"] == simplerl.__version__
    assert entry["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert entry["device"]["threads"] == torch.get_num_threads()
    assert entry["variables"]["OMP_NUM_THREADS"] == "3"
    assert 1 <= entry["cpu"]["cores"] <= os.cpu_count()
    assert entry["cpu"]["model"]


def test_git_state_of_a_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    assert environment.git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert environment.git_state(tmp_path) == {"commit": head, "modified": False}
    (tmp_path / "a").write_text("2")
    assert environment.git_state(tmp_path) == {"commit": head, "modified": True}
    (tmp_path / "lib").mkdir()
    assert environment.git_state(tmp_path / "lib") is None, "installed inside another project's checkout"


def test_without_git_there_is_no_git_state(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert environment.git_state(tmp_path) is None


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("", 8)])
def test_a_containers_quota_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(environment, "_read", lambda path: quota)
    assert environment.available_cores() == cores


def test_resident_memory_grows_with_an_allocation():
    before = environment.rss_gib()
    block = bytearray(os.urandom(1)) * (200 << 20)
    assert environment.rss_gib() - before == pytest.approx(200 / 1024, abs=0.05)
    del block


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc")
def test_available_memory_is_at_most_the_total():
    state = environment.memory_state()
    assert 0 < state["available"] <= state["total"]


def test_a_system_without_proc_gets_defaults(monkeypatch):
    monkeypatch.setattr(environment, "_read", lambda path: "")
    assert environment.memory_state() == {}
    assert environment.cpu_state()["instructions"] == []
    assert environment.rss_gib() > 0
