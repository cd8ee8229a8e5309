"""Tables of responses, and the lock of a folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplerl.errors import SimpleRLError
from simplerl.formatting import replace_surrogates
from simplerl.storage import atomic
from simplerl.storage.jsonl import Row

if TYPE_CHECKING:
    import pyarrow


# --- tables of responses ----------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: Sequence[Row], columns: Mapping[str, str]) -> Path:
    """Write a table, whole or not at all. `columns` maps names to Arrow's types; a column that a row lacks is null."""
    import pyarrow.parquet

    with atomic.new_file(path) as temporary:
        pyarrow.parquet.write_table(_table(rows, columns), temporary, compression="zstd")
    return path


def _table(rows: Sequence[Row], kinds: Mapping[str, str]) -> pyarrow.Table:
    import pyarrow

    unknown = sorted({key for row in rows for key in row} - kinds.keys())
    if unknown:
        raise ValueError(f"responses have no column {', '.join(unknown)}; known: {', '.join(kinds)}")
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in kinds.items()])
    columns = [[encodable(row.get(name)) for row in rows] for name in kinds]
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def encodable(value: Any) -> Any:
    """A cell that UTF-8 can encode, see `replace_surrogates`."""
    return replace_surrogates(value) if isinstance(value, str) else value


# --- the lock ---------------------------------------------------------------------------------------------------------

_held: set[int] = set()


def _closed_in_children(descriptor: int) -> set[int]:
    if not _held and not getattr(_close_held, "registered", False):
        os.register_at_fork(after_in_child=_close_held)
        _close_held.registered = True  # type: ignore[attr-defined]
    _held.add(descriptor)
    return _held


def _close_held() -> None:
    while _held:
        os.close(_held.pop())


@contextmanager
def locked(folder: Path, timeout: float = 3.0) -> Iterator[None]:
    """Lock a folder for this process. The kernel releases the lock when the process dies, however it dies.

    Waits `timeout` seconds: a killed process with much memory takes a moment to disappear.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    # a forked worker would keep the lock after its parent's death
    inherited = _closed_in_children(descriptor)
    try:
        _acquire(descriptor, folder, timeout)
        yield
    finally:
        inherited.discard(descriptor)
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
                raise SimpleRLError(
                    f"{folder} is in use by {holder}; wait for it, stop it, or name another folder"
                ) from None
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
