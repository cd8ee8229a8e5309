"""Shared by all tests: one thread, a tiny model, and no silent skips in an environment with every package."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported anywhere: tests share few cores, and rounding depends on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

# No test may fail because a machine is busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TOGETHER = {
    "test_cluster.py": "cluster",
    "test_cluster_verifiers.py": "cluster",
    "test_cluster_gpus.py": "nodes",
    "test_cluster_nodes.py": "nodes",
    "test_drill.py": "nodes",
    "test_vllm_engine.py": "vllm",
}
"""Files whose tests run in the same worker, because they share fixtures that start slowly. Ray's files form two groups
of about equal time, so that two workers finish together."""

NO_SKIP = os.environ.get("SIMPLERL_NO_SKIP") == "1"


def pytest_configure() -> None:
    """Restore Ctrl-C, which tests send to child processes: background jobs of a shell ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 model of two layers, with a byte-level BPE that has Qwen's special tokens and a chat template."""
    from simplerl.data.corpus import document
    from simplerl.pretrain import BaseConfig, new_model, render_document, train_tokenizer
    from simplerl.seeding import rng_for

    folder = tmp_path_factory.mktemp("models") / "tiny"
    rng = rng_for(0, "tokenizer of the tests")
    tokenizer = train_tokenizer((render_document(document(rng)) for _ in range(200)), vocab_size=320)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64}
    new_model(BaseConfig(vocab_size=320, **sizes), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# --- skips ------------------------------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    expected = item.get_closest_marker("gpu") is not None or hasattr(report, "wasxfail")
    if NO_SKIP and report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"skipped, which SIMPLERL_NO_SKIP=1 forbids: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped, which SIMPLERL_NO_SKIP=1 forbids: {report.longrepr}"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Every test by itself but those of `TOGETHER`, which come first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(Path(nodeid.partition("::")[0]).name, nodeid)

    return Scheduling(config, log)
