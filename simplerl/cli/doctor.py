"""`simplerl doctor`: what works on this machine, what is missing, and the remedy."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import simplerl
from simplerl.cli.console import say, say_json
from simplerl.formatting import table

State = Literal["ok", "note", "missing"]
OPTIONAL = {
    "datasets": ("hub", "data sets from the Hugging Face hub"),
    "bitsandbytes": ("8bit", "actor.name=adamw-8bit"),
    "peft": ("lora", "model.lora"),
    "tensorboard": ("track", "track.tensorboard"),
    "wandb": ("track", "track.wandb"),
}
"""Packages, the extra that brings them, and what they are for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `missing` keeps `simplerl train quickstart` from running."""

    what: str
    state: State
    detail: str
    remedy: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what works here and what is missing. Exit code 1 if training cannot run."""
    findings = [*versions(), *packages(), *devices(), *resources(), sandbox(), *base_model(), *data_sets()]
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        say(table([(f.state, f.what, f.detail + (f"  -> {f.remedy}" if f.remedy else "")) for f in findings]))
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def versions() -> Iterator[Finding]:
    yield Finding("simplerl", "ok", simplerl.__version__)
    fits = sys.version_info >= (3, 11)
    remedy = "" if fits else "install Python 3.11 or newer"
    yield Finding("python", "ok" if fits else "missing", f"{platform.python_version()}, {platform.platform()}", remedy)


# --- packages ---------------------------------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """Every package simplerl requires, and the optional ones."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("simplerl") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("installation", "note", "runs from a folder, not installed", "pip install -e .")
        lines = []
    required = [Requirement(line) for line in lines]
    for each in required:
        if each.marker is None:
            yield installed(each.name, str(each.specifier), each.specifier.contains)
    for name, (extra, purpose) in OPTIONAL.items():
        yield optional(name, extra, purpose)


def installed(name: str, wanted: str, fits: Any) -> Finding:
    """A required package: there, in range, and importable."""
    remedy = f'pip install "{name}{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy)
    if not fits(version):
        return Finding(name, "missing", f"{version} is outside {wanted}", remedy)
    fault = import_fault(name)
    return Finding(name, "missing", f"{version}: {fault}", remedy) if fault else Finding(name, "ok", version)


def optional(name: str, extra: str, purpose: str) -> Finding:
    remedy = f"pip install 'simplerl[{extra}]'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "note", f"not installed; needed for {purpose}", remedy)
    fault = import_fault(name)
    return (
        Finding(name, "note", f"{version}: {fault}", remedy) if fault else Finding(name, "ok", f"{version}: {purpose}")
    )


def import_fault(name: str) -> str | None:
    """Why a package does not import; None when it does."""
    try:
        importlib.import_module(name.replace("-", "_"))
    # A broken package may raise anything at import, and saying so is what this command is for.
    except Exception as error:
        return f"does not import ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    return None


# --- the machine ------------------------------------------------------------------------------------------------------


def devices() -> Iterator[Finding]:
    from simplerl.environment import cpu_state, device_state

    cpu, torch_state = cpu_state(), device_state()
    yield Finding("cpu", "ok", f"{cpu['model']}, {cpu['cores']} cores")
    yield Finding("instructions", "ok", ", ".join(cpu["instructions"]) or "none of those looked for")
    if "avx512_bf16" not in cpu["instructions"] and "amx_bf16" not in cpu["instructions"]:
        yield Finding("bfloat16", "note", "no instructions for it on this CPU", "keep model.dtype=float32 there")
    if torch_state:
        yield kernels()
    for gpu in torch_state.get("gpus", []):
        yield Finding("gpu", "ok", f"{gpu['name']}, {gpu['memory_gib']} GiB")
    if torch_state and not torch_state["gpus"]:
        yield no_gpu(torch_state["cuda"])


def kernels() -> Finding:
    """State of the C kernels for the CPU; compiles them if they are not in the cache yet."""
    from simplerl.cpu import unavailable_reason

    reason = unavailable_reason()
    if reason is None:
        return Finding("kernels", "ok", "compiled for this CPU")
    remedy = "install a C compiler (Debian, Ubuntu: apt-get install gcc); runs work without, several times slower"
    return Finding("kernels", "note", reason, remedy)


def no_gpu(cuda_build: str | None) -> Finding:
    """Why torch sees no GPU, as far as can be told."""
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "note", "none; quickstart runs on the CPU, the 7B recipes do not")
    if cuda_build is None:
        remedy = 'pip install --force-reinstall "torch>=2.11,<2.14"'
        return Finding("gpu", "note", "there is a driver, but this torch is a CPU build", remedy)
    return Finding(
        "gpu", "note", f"there is a driver, but torch (CUDA {cuda_build}) sees no device", "see `nvidia-smi`"
    )


def resources() -> Iterator[Finding]:
    """Memory and disk, against what quickstart takes."""
    from simplerl.environment import memory_state

    memory = memory_state()
    if memory:
        enough = memory.get("available", memory["total"]) >= 2
        detail = ", ".join(f"{value:g} GiB {name}" for name, value in memory.items())
        yield Finding("memory", "ok" if enough else "note", detail, "" if enough else "quickstart wants 2 GiB free")
    free = shutil.disk_usage(Path.cwd()).free / (1 << 30)
    remedy = "" if free >= 1 else "quickstart leaves up to 1 GiB; use --run-dir on another disk"
    yield Finding("disk", "ok" if free >= 1 else "note", f"{free:,.1f} GiB free in {Path.cwd()}", remedy)


def sandbox() -> Finding:
    """Whether programs that a model wrote can be run here, see `simplerl.verifiers.python_tests`."""
    from simplerl.verifiers.python_tests import isolation_fault

    if fault := isolation_fault():
        remedy = "verifier.isolation=limits runs programs of the verifier python-tests with your files in reach"
        return Finding("sandbox", "note", f"programs cannot be isolated: {fault}", remedy)
    return Finding("sandbox", "ok", "programs have no network, files or other processes (verifier python-tests)")


def base_model() -> Iterator[Finding]:
    from simplerl.estimate.shapes import known_shape

    shape = known_shape("tiny-math-base")
    if shape is None:
        remedy = "simplerl base build, then --set model.path=tiny-math-base/"
        yield Finding("tiny-math-base", "missing", "not in this installation", remedy)
    else:
        yield Finding("tiny-math-base", "ok", f"{shape.parameters:,} parameters")


def data_sets() -> Iterator[Finding]:
    """Published sets: how many are on this machine, and where the others would come from."""
    from simplerl.data.store import cache_folder, data_folder, whereabouts

    yield Finding("SIMPLERL_DATA", "ok" if data_folder() else "note", str(data_folder() or "not set"))
    yield Finding("cache", "ok", str(cache_folder()))
    for name, stored in stored_sets():
        where = whereabouts(stored)
        here = not where.startswith(("hub:", "missing"))
        remedy = f"simplerl data prepare {name}" if where.startswith("hub:") else "put its file into SIMPLERL_DATA"
        yield Finding(f"data {name}", "ok" if here else "note", where, "" if here else remedy)


def stored_sets() -> Iterator[tuple[str, Any]]:
    """Published training sets and benchmarks by name; generated ones and a user's own have no files to look for."""
    from simplerl import plugins

    for kind in ("data", "benchmarks"):
        for name in plugins.available(kind):
            stored = getattr(plugins.load(kind, name), "SET", None)
            if stored is not None:
                yield (name if kind == "data" else f"{name} (benchmark)"), stored
