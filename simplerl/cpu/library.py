"""The C kernels: compiled once for this machine by the compiler at hand, kept in the user's cache, called by `ctypes`.

A call releases Python's lock, so threads run kernels side by side. Without a compiler nothing is lost but speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

SOURCES = ("attention.c", "decode.c", "layer.c", "rows.c")
HEADERS = ("simd.h", "matmul.h", "layer.h")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-fopenmp-simd", "-fno-math-errno")
P, N, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
LAYER = {
    "norm_linear_forward": (P, P, F, P, P, N, N, N, P, P),
    "norm_linear_backward": (P, P, P, P, P, P, N, N, N, P, P, P, P),
    "add_linear_forward": (P, P, P, N, N, N, P),
    "add_linear_backward": (P, P, P, N, N, N, P, P),
    "mlp_forward": (P, P, F, P, P, P, N, N, N, P, P, P),
    "mlp_backward": (P, P, P, P, P, P, P, P, N, N, N, P, P, P, P, P),
}
"""Each is there twice: with _bf16 factors are rounded."""

SIGNATURES = {
    "attention_forward": (P, P, P, N, P, N, N, N, N, F, P, P),
    "attention_backward": (P, P, P, N, P, N, N, N, N, F, P, P, P, P),
    "norm_forward": (P, P, N, N, F, P, P),
    "norm_backward": (P, P, P, P, P, N, N, P, P),
    "swiglu_forward": (P, N, N, P),
    "swiglu_backward": (P, P, N, N, P),
    **LAYER,
    "draw": (P, P, P, N, N, P, P),
    "draw_step": (P, P, P, N, N, N, P),
    **{f"{name}_bf16": types for name, types in LAYER.items()},
    "cache_prompt": (P, P, P, N, P, N, P, P, N, N, N, N),
    "decode_layers": (P, P, N, P, P, P, P, P, N),
    "product": (P, P, N, N, N, P),
}
NEVER_FAIL = ("norm_forward", "swiglu_forward", "swiglu_backward", "product")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had, see `problem`."""
    return None if isinstance(found := _find(), str) else found


def problem() -> str | None:
    """Why there are no kernels, in words; None where there are."""
    return found if isinstance(found := _find(), str) else None


@cache
def _find() -> ctypes.CDLL | str:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) is installed"
    try:
        return _declared(ctypes.CDLL(str(_compiled(compiler))))
    except subprocess.CalledProcessError as error:
        return f"{compiler} cannot compile the kernels: {error.stderr.strip()[-300:]}"
    except OSError as error:
        return f"the compiled kernels cannot be used: {error}"


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    for name, types in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes = types
        function.restype = None if name in NEVER_FAIL else ctypes.c_int
    return found


def _compiled(compiler: str) -> Path:
    """The shared library of these sources, this compiler and this processor; made if it is not there."""
    sources = resources.files("simplerl.cpu")
    texts = {name: (sources / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)}
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    wanted = repr((sorted(texts.items()), FLAGS, compiler, version, _processor()))
    target = _cache() / f"kernels-{hashlib.sha256(wanted.encode()).hexdigest()[:20]}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            built = Path(folder) / "kernels.so"
            command = [compiler, *FLAGS, _tuning(compiler), *SOURCES, "-o", str(built), "-lm"]
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            built.rename(target)
    return target


def _cache() -> Path:
    """The user's own folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "simplerl"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; remove it or set XDG_CACHE_HOME")
    return folder


def _tuning(compiler: str) -> str:
    """The option that makes a compiler use all that this processor has."""
    probe = [compiler, "-march=native", "-x", "c", "-E", os.devnull]
    known = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return "-march=native" if known else "-mcpu=native"


def _processor() -> str:
    """What distinguishes processors: a library made for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
