"""Checks of nodes: real reports of this machine, changed by the tests."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simplerl.cluster import check, ray
from simplerl.cluster.report import folder_state, node_report
from simplerl.errors import ClusterError

pytestmark = pytest.mark.unit


SILENT: dict[str, Any] = {}


class FakePlacement:
    """Learners on the nodes "learner" and "both", engines on "engine" and "both"."""

    def nodes(self) -> tuple[set[str], set[str]]:
        return {"learner", "both"}, {"engine", "both"}


@pytest.fixture
def nodes(monkeypatch: Any) -> dict[str, dict[str, Any]]:
    """Changes to the nodes' reports, by node. SILENT: the node does not report. A test fills it."""
    changes: dict[str, dict[str, Any]] = {}

    def run_on_nodes(nodes: set[str], function: Any, *arguments: Any, seconds: float) -> dict[str, Any]:
        found = {}
        for node in sorted(nodes):
            own = function(*arguments)
            change = changes.get(node, {})
            if change is SILENT:
                continue
            versions = own["versions"] | change.get("versions", {})
            found[node] = own | {"host": node} | change | {"versions": versions}
        return found

    monkeypatch.setattr(ray, "run_on_nodes", run_on_nodes)
    monkeypatch.setattr(ray, "alive_nodes", lambda: {"learner", "engine", "both"})
    monkeypatch.setattr(ray, "host_name", lambda node: node)
    return changes


def error_text(folder: Path, packages: tuple[str, ...] = (), model: str = "") -> str:
    with pytest.raises(ClusterError) as error:
        check.check_nodes(FakePlacement(), folder, packages, model)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == [], "the token file must be deleted"
    return str(error.value)


def test_nodes_equal_to_this_one_pass(nodes: Any, tmp_path: Path) -> None:
    check.check_nodes(FakePlacement(), tmp_path, (), str(tmp_path))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_silent_node_is_an_error_unless_it_has_left_the_cluster(nodes: Any, tmp_path: Path, monkeypatch: Any) -> None:
    nodes["engine"] = SILENT
    assert error_text(tmp_path).startswith("node engine did not report within 60 s; check it")
    monkeypatch.setattr(ray, "alive_nodes", lambda: {"learner", "both"})
    check.check_nodes(FakePlacement(), tmp_path, (), "")  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["python", "simplerl", "torch", "transformers"])
def test_another_release_is_an_error_that_names_both(nodes: Any, tmp_path: Path, package: str) -> None:
    here = node_report(check.PACKAGES, "", "", "")
    nodes["learner"] = {"versions": {package: "0.0.1"}}
    assert error_text(tmp_path) == (
        f"node learner has {package} 0.0.1, {here['host']} has {here['versions'][package]}; "
        "install the same release on all nodes"
    )


def test_engine_packages_that_the_driver_lacks_are_compared_between_engines(nodes: Any, tmp_path: Path) -> None:
    nodes["both"] = {"versions": {"enginelib": "1.2.3"}}
    nodes["engine"] = {"versions": {"enginelib": "1.2.4"}}
    assert error_text(tmp_path, ("enginelib",)).startswith("node engine has enginelib 1.2.4, both has 1.2.3; ")
    nodes["engine"] = {}
    assert error_text(tmp_path, ("enginelib",)).startswith("node engine has no enginelib, both has 1.2.3; ")
    nodes["both"] = {}  # no node has it: building the engine gives a better error
    check.check_nodes(FakePlacement(), tmp_path, ("enginelib",), "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("missing", "does not see the run's folder"),
        ("another", "has another folder at"),
        ("read-only", "may not write"),
    ],
)
def test_learners_must_share_the_run_folder_engines_need_not(nodes: Any, tmp_path: Path, state: str, text: str) -> None:
    nodes["engine"] = {"folder": state}
    check.check_nodes(FakePlacement(), tmp_path, (), "")  # type: ignore[arg-type]
    nodes["both"] = {"folder": state}
    message = error_text(tmp_path)
    assert message.startswith(f"node both {text}") and str(tmp_path) in message and "--run-dir" in message
    assert "\n" not in message


def test_every_node_must_see_the_model_folder(nodes: Any, tmp_path: Path) -> None:
    nodes["engine"] = {"model": False}
    assert error_text(tmp_path, model="/models/7b").count("does not see the model's folder, model.path=/models/7b") == 3


def test_the_token_file_shows_which_folders_are_shared(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with check.token_file(tmp_path) as token:
        assert folder_state(str(tmp_path), token) == "shared"
        assert folder_state(str(other), token) == "missing"
        other.mkdir()
        assert folder_state(str(other), token) == "another"


def test_builds_of_one_release_count_as_equal(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"torch": "2.13.0+cu128"}.__getitem__)
    assert node_report(("torch",), "", "", "")["versions"]["torch"] == "2.13.0"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray")
def test_a_node_without_this_package_can_report(tmp_path: Path) -> None:
    code = """
import sys, pickle
sys.modules["simplerl"] = None
print(pickle.load(open(sys.argv[1], "rb"))(["simplerl"], "", "", "")["versions"]["simplerl"])
"""
    import ray.cloudpickle as cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["simplerl.cluster.report"])
    (tmp_path / "report").write_bytes(cloudpickle.dumps(node_report))
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "report"], capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr
    assert pickle.loads(pickle.dumps(node_report)) is node_report
