"""The machine a figure comes from: its parts, its versions and its roofline.

python benchmarks/_machine.py        prints both, for one thread and for two
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = (512, 1024, 2048)
SLOW = 0.2
STREAM = 1 << 26
"""Numbers of the vectors that memory bandwidth is measured with, 256 MiB each."""


def description() -> dict[str, Any]:
    """Hardware and versions, as one line of the results."""
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "flags": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in _flags()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "commit": _commit(),
    }


def roofline(threads: int) -> dict[str, float]:
    """Measured in a process of its own: GFLOP/s of matrix products by type, GB/s of reading and of copying."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "roof", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_roofline(threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    roof: dict[str, float] = {"threads": threads}
    with torch.inference_mode():
        for name in ("float32", "bfloat16"):
            roof[f"gemm_{name}_gflops"] = _fastest_product(getattr(torch, name))
        source, target = torch.zeros(STREAM), torch.zeros(STREAM)
        roof["read_gbs"] = 4 * STREAM / _best(source.sum) / 1e9
        roof["copy_gbs"] = 8 * STREAM / _best(lambda: target.copy_(source)) / 1e9
    return {name: round(value, 1) for name, value in roof.items()}


def gemm_peak(roof: dict[str, float], dtype: str) -> float:
    """GFLOP/s that a program of this type can hope for: where bfloat16 is emulated, float32 is the faster way."""
    return max(roof["gemm_float32_gflops"], roof[f"gemm_{dtype}_gflops"])


def _fastest_product(dtype: Any) -> float:
    """GFLOP/s of the fastest square product; once one takes long, larger ones are not tried."""
    import torch

    peak = 0.0
    for size in SIZES:
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        seconds = _best(partial(torch.mm, left, right))
        peak = max(peak, 2 * size**3 / seconds / 1e9)
        if seconds > SLOW:
            break
    return peak


def _best(function: Callable[[], object], budget: float = 0.4) -> float:
    """The shortest of as many runs as the budget of seconds allows, three at least, after one to warm up."""
    function()
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 3 or spent < budget:
        begun = time.perf_counter()
        function()
        seconds = time.perf_counter() - begun
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    return _cpuinfo("flags").split()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    if sys.argv[1:2] == ["roof"]:
        print(json.dumps(measure_roofline(int(sys.argv[2]))))
        return
    print(json.dumps(description()))
    for threads in (1, 2):
        print(json.dumps(roofline(threads)), flush=True)


if __name__ == "__main__":
    main()
