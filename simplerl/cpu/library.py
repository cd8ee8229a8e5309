"""The compiled C kernels: built once by this machine's compiler, kept in the user's cache, called by `ctypes`.

A call releases Python's lock, so threads run kernels side by side. Without a compiler everything runs through torch,
only slower.
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

# Types of arguments: a pointer, an integer, a float.
P, N, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
LAYER_SIGNATURES = {
    "norm_linear_forward": (P, P, F, P, P, N, N, N, P, P),
    "norm_linear_backward": (P, P, P, P, P, P, N, N, N, P, P, P, P),
    "add_linear_forward": (P, P, P, N, N, N, P),
    "add_linear_backward": (P, P, P, N, N, N, P, P),
    "mlp_forward": (P, P, F, P, P, P, N, N, N, P, P, P),
    "mlp_backward": (P, P, P, P, P, P, P, P, N, N, N, P, P, P, P, P),
}
"""Kernels that exist twice: the one whose name ends in _bf16 rounds the factors of its products to bfloat16."""

SIGNATURES = {
    "attention_forward": (P, P, P, N, P, N, N, N, N, F, P, P),
    "attention_backward": (P, P, P, N, P, N, N, N, N, F, P, P, P, P),
    "norm_forward": (P, P, N, N, F, P, P),
    "norm_backward": (P, P, P, P, P, N, N, P, P),
    "swiglu_forward": (P, N, N, P),
    "swiglu_backward": (P, P, N, N, P),
    **LAYER_SIGNATURES,
    "draw": (P, P, P, N, N, P, P),
    "draw_step": (P, P, P, N, N, N, P),
    **{f"{name}_bf16": types for name, types in LAYER_SIGNATURES.items()},
    "cache_prompt": (P, P, P, N, P, N, P, P, N, N, N, N),
    "decode_layers": (P, P, N, P, P, P, P, P, N),
    "product": (P, P, N, N, N, P),
}
RETURN_NOTHING = ("norm_forward", "swiglu_forward", "swiglu_backward", "product")
"""Kernels that need no scratch memory. Every other one returns nonzero when it got none."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels. None: they are unavailable, see `unavailable_reason`."""
    return None if isinstance(loaded := _load(), str) else loaded


def kernels_available() -> bool:
    """True if the kernels can run on this machine. The first call compiles them, which takes about 3 s."""
    return library() is not None


def unavailable_reason() -> str | None:
    """Why the kernels are unavailable, as text. None: they are available. The first call compiles them."""
    return loaded if isinstance(loaded := _load(), str) else None


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or the reason why it is unavailable."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) is installed"
    try:
        return _declare_signatures(ctypes.CDLL(str(_compile(compiler))))
    except subprocess.CalledProcessError as error:
        return f"{compiler} cannot compile the kernels: {error.stderr.strip()[-300:]}"
    except OSError as error:
        return f"the compiled kernels cannot be used: {error}"


def _declare_signatures(loaded: ctypes.CDLL) -> ctypes.CDLL:
    for name, types in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = types
        function.restype = None if name in RETURN_NOTHING else ctypes.c_int
    return loaded


def _compile(compiler: str) -> Path:
    """Path of the library for these sources, this compiler and this processor; compiles it if the cache lacks it."""
    package = resources.files("simplerl.cpu")
    sources = {name: (package / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)}
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = repr((sorted(sources.items()), FLAGS, compiler, version, _processor_key()))
    target = _cache_folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            for name, text in sources.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            built = Path(folder) / "kernels.so"
            command = [compiler, *FLAGS, _native_flag(compiler), *SOURCES, "-o", str(built), "-lm"]
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            # Renaming is atomic, so processes that compile at the same time never see half a file.
            built.rename(target)
    return target


def _cache_folder() -> Path:
    """The user's cache folder of SimpleRL. Raises `PermissionError` if another user owns it: its code would be run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "simplerl"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; remove it or set XDG_CACHE_HOME")
    return folder


def _native_flag(compiler: str) -> str:
    """The flag that lets the compiler use every instruction of this processor."""
    probe = [compiler, "-march=native", "-x", "c", "-E", os.devnull]
    known = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return "-march=native" if known else "-mcpu=native"


def _processor_key() -> str:
    """Text that differs between processors: a library built for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
