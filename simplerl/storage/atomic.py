"""Atomic file writes: temporary name, flush, fsync, rename, fsync of the folder.

However the process stops, a reader finds either the old content or the new. Leftovers of a killed process have names
that start with `.tmp-`; `remove_leftovers` removes them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simplerl.errors import SimpleRLError

TEMPORARY = ".tmp-"
REPLACED = ".old-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(SimpleRLError, OSError):
    """The disk had no room for a file; the file was not written and no part of it remains."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, replacing one of that name. Raises `DiskFullError`."""
    with new_file(path, wanted=len(data)) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON; floats are read back with equal bits. Raises `ValueError` for NaN and Inf."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_file(path: Path, wanted: int | None = None) -> Iterator[Path]:
    """A temporary name beside `path` to write to: renamed to `path` at the end, removed on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    with _cleaned_up(temporary, path, wanted):
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


@contextmanager
def new_folder(path: Path, wanted: int | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` to fill: renamed to `path` at the end, removed on any error.

    An existing folder at `path` is replaced. No portable call exchanges two folders, so between two renames the old one
    is named `.old-NAME`; a reader that finds no NAME looks there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    with _cleaned_up(temporary, path, wanted):
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        _put_in_place(temporary, path)


def append_line(path: Path, line: bytes) -> None:
    """Append one line durably. A torn line that a killed process left at the end is dropped first.

    If the disk is full, the file is truncated to its old content, so no half line remains.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = _end_of_last_line(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        try:
            _write_all(descriptor, line + b"\n")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise _explained(error, path, len(line) + 1) from error
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder that may already be gone. A folder is renamed first, so no reader sees a part of it."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.startswith(TEMPORARY) else _temporary_name(path)
        if doomed != path:
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove leftovers of killed writers directly in `folder`; return their names."""
    stale = sorted(Path(folder).glob(f"{TEMPORARY}*"))
    for path in stale:
        remove(path)
    return [path.name for path in stale]


@contextmanager
def _cleaned_up(temporary: Path, path: Path, wanted: int | None) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        remove(temporary)
        explained = _explained(error, path, wanted)
        if explained is error:
            raise
        raise explained from error


def _explained(error: BaseException, path: Path, wanted: int | None) -> BaseException:
    """`DiskFullError` if the disk, or the user's quota on it, was full; otherwise the error itself."""
    # safetensors writes in Rust and reports the system's error as text
    in_rust = type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC}" in str(error)
    if isinstance(error, DiskFullError) or not (in_rust or (isinstance(error, OSError) and error.errno in _FULL)):
        return error
    free = shutil.disk_usage(Path(path).parent).free
    need = "more bytes than there are" if wanted is None else f"{wanted:,} bytes"
    return DiskFullError(
        f"disk full: {path} needs {need}, {free:,} are free. No part of it remains; "
        "make room and run the same command again: it resumes from the last complete checkpoint"
    )


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _end_of_last_line(descriptor: int, block: int = 1 << 16) -> int:
    """Offset just after the last newline; 0 if there is none."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _put_in_place(temporary: Path, path: Path) -> None:
    aside = path.with_name(REPLACED + path.name)
    if path.exists():
        remove(aside)
        os.rename(path, aside)
    os.rename(temporary, path)
    _sync(path.parent)
    remove(aside)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place) / name)
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems have no fsync for folders
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
