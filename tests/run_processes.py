"""Runs in child processes, which tests can kill, and the records of such runs."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
from safetensors.torch import load_file

from simplerl.storage.atomic import TEMPORARY
from simplerl.storage.records import RunFolder


def server() -> Any:
    """Multiprocessing context whose children start in milliseconds: its server has imported every package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simplerl.train.run", "transformers.models.qwen2.modeling_qwen2"])
    return context


def run(recipe: Any, folder: Path) -> None:
    import torch

    from simplerl.train.run import train

    # The parent reads files, never the output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    train(recipe, folder, plain=True)


def finish(processes: Any, recipe: Any, folder: Path) -> None:
    child = processes.Process(target=run, args=(recipe, folder))
    child.start()
    child.join(300)
    assert child.exitcode == 0, folder.with_suffix(".log").read_text()[-3000:]


def run_until(recipe: Any, folder: Path, name: str, count: int) -> None:
    """`run`, but instead of fsync number `count` of a file or folder write `FOLDER.stopped` and wait to be killed.

    Its `name` is relative to the run folder and has no prefix of temporary names.
    """
    fsync, left = os.fsync, count

    def stop_or_fsync(descriptor: int) -> None:
        nonlocal left
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(folder.resolve())
        left -= re.sub(re.escape(TEMPORARY) + r"\d+-[0-9a-f]+-", "", str(path)) == name
        if not left:
            folder.with_suffix(".stopped").touch()
            threading.Event().wait()
        fsync(descriptor)

    os.fsync = stop_or_fsync
    run(recipe, folder)


def kill_at(processes: Any, recipe: Any, folder: Path, name: str, count: int = 1) -> None:
    """Run until the process is about to make a file or folder durable, see `run_until`, and kill it there."""
    child = processes.Process(target=run_until, args=(recipe, folder, name, count))
    stopped = folder.with_suffix(".stopped")
    child.start()
    wait_for(lambda: stopped.exists() or not child.is_alive(), 300)
    assert stopped.exists(), folder.with_suffix(".log").read_text()[-3000:]
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    stopped.unlink()


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(("time/", "memory/"))}


def contents(folder: Path) -> dict[str, Any]:
    """Every number and every response of a run, without times and memory."""
    records = RunFolder(folder)
    tables = {
        str(path.relative_to(folder)): pyarrow.parquet.read_table(path).to_pylist()
        for path in sorted(folder.glob("*/*.parquet"))
    }
    return {
        "metrics": [without_times(row) for row in records.read_metrics()],
        "evals": records.read_evals(),
        "validation": records.read_validation(),
        "tables": tables,
    }


def same_weights(first: Path, second: Path) -> bool:
    """True if two runs exported the same weights, bit for bit."""
    a, b = (load_file(folder / "exports" / "final" / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)


def own_processes(name: str) -> list[int]:
    """Wait for descendants of this process whose command starts with `name`; return their ids.

    Processes of other tests on the machine are left out.
    """
    from simplerl.tools.drill import descendants, process_title

    found: list[int] = []
    wait_for(
        lambda: found.extend(p for p in descendants(os.getpid()) if process_title(p).startswith(name)) or bool(found)
    )
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
