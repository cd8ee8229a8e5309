"""The environment of a run: versions, devices, git state, CPU, memory. Values are plain JSON; no function raises."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import simplerl

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "pydantic",
    "sympy",
    "vllm",
    "ray",
)
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES")
"""Environment variables that can change rounding, and with it a run's numbers."""

GIB = 1 << 30


def describe_environment() -> dict[str, Any]:
    """Describe this session, for its entry in `environment.json`. Imports torch if it is installed."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "simplerl": simplerl.__version__,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": device_state(),
        "cpu": cpu_state(),
        "memory_gib": memory_state(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions of `PACKAGES`. None: not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the package's checkout, and whether files differ from it. None: the package is not in a checkout."""
    root = folder or Path(__file__).resolve().parents[1]
    # The parent folder of an installed package may lie in another project's checkout; that commit is not ours.
    if not (root / ".git").exists():
        return None
    commit, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "modified": None if status is None else bool(status)}


def device_state() -> dict[str, Any]:
    """CUDA devices and torch's number of threads. Empty if torch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    state: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda, "gpus": []}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = round(properties.total_memory / GIB, 1)
            state["gpus"].append({"name": properties.name, "memory_gib": memory})
    return state


def cpu_state() -> dict[str, Any]:
    """CPU model, cores this process may use, and the instruction sets that decide which kernels run."""
    fields = _proc_fields("/proc/cpuinfo")
    flags = set(fields.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "model": fields.get("model name", platform.processor() or platform.machine()),
        "cores": available_cores(),
        "instructions": [flag for flag in wanted if flag in flags],
    }


def available_cores() -> int:
    """Cores this process may use, by its affinity mask and its container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def memory_state() -> dict[str, float]:
    """GiB of memory: the machine's total, what is available, and the container's limit if it has one."""
    fields = _proc_fields("/proc/meminfo")
    state = {}
    for key, name in (("total", "MemTotal"), ("available", "MemAvailable")):
        if name in fields:
            state[key] = round(int(fields[name].split()[0]) * 1024 / GIB, 2)
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        state["limit"] = round(int(limit) / GIB, 2)
    return state


def rss_gib() -> float:
    """Resident memory of this process in GiB; its peak on systems without /proc."""
    pages = _read("/proc/self/statm").split()
    if len(pages) > 1:
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / GIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # Without optional locks this cannot disturb a `git commit` that the user runs meanwhile.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _proc_fields(path: str) -> dict[str, str]:
    """Values of `name : value` lines; the first line of each name counts."""
    fields: dict[str, str] = {}
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields
