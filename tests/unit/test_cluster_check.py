"""What is said of nodes that differ, or do not see the run's folder: real reports, some changed on the way."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simplerl.cluster import check, ray
from simplerl.cluster.report import report
from simplerl.errors import ClusterError

pytestmark = pytest.mark.unit


SILENT: dict[str, Any] = {}


class Place:
    """Stands for a placement: learners on one node, engines on another and on one with both."""

    def nodes(self) -> tuple[set[str], set[str]]:
        return {"learner", "both"}, {"engine", "both"}


@pytest.fixture
def nodes(monkeypatch: Any) -> dict[str, dict[str, Any]]:
    """What the nodes differ in from this one; a test writes into it."""
    changes: dict[str, dict[str, Any]] = {}

    def on_each(nodes: set[str], function: Any, *arguments: Any, seconds: float) -> dict[str, Any]:
        found = {}
        for node in sorted(nodes):
            own = function(*arguments)
            change = changes.get(node, {})
            if change is SILENT:
                continue
            versions = own["versions"] | change.get("versions", {})
            found[node] = own | {"host": node} | change | {"versions": versions}
        return found

    monkeypatch.setattr(ray, "on_each", on_each)
    monkeypatch.setattr(ray, "nodes", lambda: {"learner", "engine", "both"})
    monkeypatch.setattr(ray, "host", lambda node: node)
    return changes


def said(folder: Path, packages: tuple[str, ...] = (), model: str = "") -> str:
    with pytest.raises(ClusterError) as error:
        check.check(Place(), folder, packages, model)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == [], "the token's file is taken away"
    return str(error.value)


def test_nodes_like_this_one_are_right(nodes: Any, tmp_path: Path) -> None:
    check.check(Place(), tmp_path, (), str(tmp_path))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_is_there_and_says_nothing_is_named_and_one_that_went_away_is_not(
    nodes: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    nodes["engine"] = SILENT
    assert said(tmp_path).startswith("node engine did not report within 60 s; look at it")
    monkeypatch.setattr(ray, "nodes", lambda: {"learner", "both"})
    check.check(Place(), tmp_path, (), "")  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["python", "simplerl", "torch", "transformers"])
def test_another_release_is_said_with_both(nodes: Any, tmp_path: Path, package: str) -> None:
    here = report(check.PACKAGES, "", "", "")
    nodes["learner"] = {"versions": {package: "0.0.1"}}
    assert said(tmp_path) == (
        f"node learner has {package} 0.0.1, {here['host']} has {here['versions'][package]}; "
        "install the same release on all"
    )


def test_what_only_engines_need_is_compared_among_them_where_the_driver_lacks_it(nodes: Any, tmp_path: Path) -> None:
    nodes["both"] = {"versions": {"enginelib": "1.2.3"}}
    nodes["engine"] = {"versions": {"enginelib": "1.2.4"}}
    assert said(tmp_path, ("enginelib",)).startswith("node engine has enginelib 1.2.4, both has 1.2.3; ")
    nodes["engine"] = {}
    assert said(tmp_path, ("enginelib",)).startswith("node engine has enginelib not at all, both has 1.2.3; ")
    nodes["both"] = {}  # nobody has it: the engine itself says so better
    check.check(Place(), tmp_path, ("enginelib",), "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("missing", "does not see the run's folder"),
        ("another", "has another folder at"),
        ("read-only", "may not write"),
    ],
)
def test_learners_must_share_the_folder_and_engines_need_not(nodes: Any, tmp_path: Path, state: str, text: str) -> None:
    nodes["engine"] = {"folder": state}
    check.check(Place(), tmp_path, (), "")  # type: ignore[arg-type]
    nodes["both"] = {"folder": state}
    message = said(tmp_path)
    assert message.startswith(f"node both {text}") and str(tmp_path) in message and "--run-dir" in message
    assert "\n" not in message


def test_all_must_see_a_model_in_a_folder(nodes: Any, tmp_path: Path) -> None:
    nodes["engine"] = {"model": False}
    assert said(tmp_path, model="/models/7b").count("does not see the model's folder, model.path=/models/7b") == 3


def test_what_a_process_says_of_a_folder(tmp_path: Path) -> None:
    def state(folder: Path, token: str) -> str:
        return report((), str(folder), token, "")["folder"]

    with check.token_in(tmp_path) as token:
        assert state(tmp_path, token) == "shared"
        other = tmp_path / "other"
        assert state(other, token) == "missing"
        other.mkdir()
        assert state(other, token) == "another"


def test_builds_of_one_release_are_alike(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"torch": "2.13.0+cu128"}.__getitem__)
    assert report(("torch",), "", "", "")["versions"]["torch"] == "2.13.0"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray")
def test_a_node_without_this_package_can_report(tmp_path: Path) -> None:
    code = """
import sys, pickle
sys.modules["simplerl"] = None
print(pickle.load(open(sys.argv[1], "rb"))(["simplerl"], "", "", "")["versions"]["simplerl"])
"""
    import ray.cloudpickle as cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["simplerl.cluster.report"])
    (tmp_path / "report").write_bytes(cloudpickle.dumps(report))
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "report"], capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr
    assert pickle.loads(pickle.dumps(report)) is report
