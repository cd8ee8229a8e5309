"""The examples for clusters: they parse, and the commands in them are ones that this version understands."""

from __future__ import annotations

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from simplerl.config import Recipe, load_recipe

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def trained(command: list[str]) -> Recipe:
    """The recipe of a `simplerl train` command, with the settings of it."""
    assert command[:2] == ["simplerl", "train"]
    settings = [value for flag, value in pairwise(command) if flag == "--set"]
    assert "--run-dir" in command and len(settings) >= 4
    recipe = load_recipe(command[2], settings)
    assert isinstance(recipe, Recipe)
    return recipe


def slurm() -> tuple[str, Recipe]:
    text = (EXAMPLES / "slurm.sh").read_text()
    name = re.search(r"^RECIPE=(\S+)$", text, re.M)
    settings = re.search(r"^SETTINGS=\((.*?)^\)", text, re.M | re.S)
    command = re.search(r"^simplerl train.*(?= &$)", text, re.M)
    assert name and settings and command
    line = command[0].replace('"${SETTINGS[@]}"', settings[1]).replace("$RECIPE", name[1])
    return text, trained(shlex.split(line))


def kuberay() -> tuple[list[dict[str, Any]], Recipe]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with Ray")
    documents = list(yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text()))
    return documents, trained(shlex.split(documents[0]["spec"]["entrypoint"]))


def test_slurm_asks_for_the_gpus_that_the_run_needs() -> None:
    done = subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, recipe = slurm()
    nodes, gpus = (re.search(rf"^#SBATCH --{key}=(\d+)$", text, re.M) for key in ("nodes", "gpus-per-node"))
    assert nodes and gpus
    assert int(nodes[1]) * int(gpus[1]) == recipe.cluster.learners + recipe.cluster.engines


def test_kuberay_asks_for_the_gpus_that_the_run_needs_and_shares_its_folders() -> None:
    (job, claim), recipe = kuberay()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    head, worker = (pod["containers"][0] for pod in pods)
    assert "nvidia.com/gpu" not in head["resources"]["limits"] and head["image"] == worker["image"]
    gpus = workers["replicas"] * worker["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == recipe.cluster.learners + recipe.cluster.engines
    for pod in pods:
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": "/shared"}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_both_are_the_same_run() -> None:
    one, other = slurm()[1], kuberay()[1]
    assert one.model_copy(update={"model": other.model}) == other
    assert one.cluster.ray == "auto" and one.model.device == other.model.device == "cuda"
