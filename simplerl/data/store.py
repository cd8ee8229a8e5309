"""Where the published sets are found, and the checksums that say they are what they should be.

Searched in this order: a path given, the folder `SIMPLERL_DATA`, the local cache (`SIMPLERL_CACHE`, otherwise
~/.cache/simplerl), the Hugging Face hub. What the hub gives is converted, checked, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simplerl.data.hub import HubTable, stored_rows
from simplerl.data.rows import Row, read_content
from simplerl.errors import DataError
from simplerl.storage import atomic
from simplerl.storage.jsonl import parse_jsonl


class MissingError(DataError):
    """A set was found nowhere; the message says where it was looked for."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A JSONL file, plain or as NAME.gz. `sha256` is that of the unpacked bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A published set. `rows_sha256` covers questions and answers in order (see `rows_digest`), whatever the file."""

    name: str
    kind: Literal["train", "test"]
    files: tuple[StoredFile, ...]
    rows_sha256: str
    hub: HubTable | None = None
    prefix: str = ""

    @property
    def size(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def prepared(self) -> str:
        """Name of the set's file in the cache."""
        return f"{self.kind}-{self.name}.jsonl"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A set in the cache. `pinned` is False for rows that differ from the published ones and were accepted so."""

    path: Path
    rows: int
    origin: str
    pinned: bool


def data_folder() -> Path | None:
    folder = os.environ.get("SIMPLERL_DATA")
    return Path(folder).expanduser() if folder else None


def cache_folder() -> Path:
    return Path(os.environ.get("SIMPLERL_CACHE") or "~/.cache/simplerl").expanduser()


def load_rows(stored: StoredSet, path: str | Path | None = None, *, fetch: bool = True) -> list[Row]:
    """The rows of a set, checked. `path` is a folder, or the file itself of a set that has one.

    Raises `DataError` for a damaged file, and for a set found nowhere, saying where it looked and what to do.
    """
    found = local_files(stored, path)
    if found:
        return _read_files(stored, found)
    if path is None and _manifest(stored).is_file():
        return _read_prepared(stored)
    if path is not None or not fetch:
        raise _missing(stored, path, "not asked")
    return _fetch(stored, accept=False)


def prepare(stored: StoredSet, *, accept: bool = False) -> Prepared:
    """Puts a set into the cache, from `SIMPLERL_DATA` or the hub, if it is not there already."""
    folder = data_folder()
    found = _files_in(stored, folder) if folder else None
    if not _manifest(stored).is_file():
        if found:
            _keep(stored, _read_files(stored, found), str(folder))
        else:
            _fetch(stored, accept=accept)
    _read_prepared(stored)
    record = json.loads(_manifest(stored).read_text(encoding="utf-8"))
    return Prepared(cache_folder() / stored.prepared, record["rows"], record["origin"], record["pinned"])


def whereabouts(stored: StoredSet) -> str:
    """Where a set would be read from, without reading it."""
    found = local_files(stored, None)
    if found:
        return str(found[0].parent)
    if _manifest(stored).is_file():
        return str(cache_folder())
    return f"hub: {stored.hub.repo}" if stored.hub else "missing"


def rows_digest(rows: Iterable[Row]) -> str:
    """SHA-256 over one JSON line [problem, answer] per row, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["problem"], row["answer"]], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


# --- the published files ----------------------------------------------------------------------------------------------


def local_files(stored: StoredSet, path: str | Path | None) -> list[Path] | None:
    """All files of a set: at the path given, otherwise in `SIMPLERL_DATA` or the cache; None unless all are there."""
    if path is not None:
        given = Path(path).expanduser()
        return [given] if given.is_file() and len(stored.files) == 1 else _files_in(stored, given)
    for folder in (data_folder(), cache_folder()):
        found = _files_in(stored, folder) if folder else None
        if found:
            return found
    return None


def _files_in(stored: StoredSet, folder: Path) -> list[Path] | None:
    candidates = ((folder / file.name, folder / f"{file.name}.gz") for file in stored.files)
    found = [next(filter(Path.is_file, pair), None) for pair in candidates]
    return None if None in found else [path for path in found if path]


def _read_files(stored: StoredSet, paths: Sequence[Path]) -> list[Row]:
    rows: list[Row] = []
    for file, path in zip(stored.files, paths, strict=True):
        content = read_content(path)
        _check(path, hashlib.sha256(content).hexdigest(), file.sha256)
        rows += _rows(content, path)
    return _in_order([_as_published(row) for row in rows])


def _rows(content: bytes, path: Path) -> list[Row]:
    return [row for _, row in parse_jsonl(content.split(b"\n"), path)]


def _check(path: Path, actual: str, wanted: str) -> None:
    if actual != wanted:
        raise DataError(
            f"{path} is damaged or not the published file: sha256 of its content is {actual}, should be {wanted}. "
            "Fetch or copy it again; data of your own go through the source `file`"
        )


def _as_published(row: Row) -> Row:
    """A stored row whose answer was repaired, with the answer as it was published; repairs are the source's to make."""
    return {key: value for key, value in row.items() if key != "answer_original"} | {
        "answer": row.get("answer_original", row["answer"])
    }


def _in_order(rows: list[Row]) -> list[Row]:
    """Rows of several files in the order of the published set: by the parts of their ids, `part/number`."""
    parts = {part: place for place, part in enumerate(dict.fromkeys(row["id"].rpartition("/")[0] for row in rows))}

    def place(row: Row) -> tuple[int, int]:
        part, _, number = row["id"].rpartition("/")
        return parts[part], int(number)

    return sorted(rows, key=place)


# --- the cache and the hub --------------------------------------------------------------------------------------------


def _manifest(stored: StoredSet) -> Path:
    # Written after the rows: a file without it was never finished.
    return cache_folder() / f"{stored.prepared}.manifest.json"


def _read_prepared(stored: StoredSet) -> list[Row]:
    path = cache_folder() / stored.prepared
    record = json.loads(_manifest(stored).read_text(encoding="utf-8"))
    content = read_content(path)
    actual = hashlib.sha256(content).hexdigest()
    if actual != record["sha256"]:
        raise DataError(
            f"{path} is damaged: sha256 is {actual}, was {record['sha256']} when it was written. "
            f"Delete it and {_manifest(stored).name}, then run `simplerl data prepare {stored.name}`"
        )
    return _rows(content, path)


def _fetch(stored: StoredSet, *, accept: bool) -> list[Row]:
    if stored.hub is None:
        raise _missing(stored, None, "no data set of the hub is known to hold these rows")
    try:
        rows = stored_rows(stored.hub, stored.prefix or stored.name)
    except DataError as error:
        raise _missing(stored, None, str(error)) from error
    if len(rows) != stored.size:
        raise DataError(f"{stored.name}: {stored.hub.repo} has {len(rows):,} rows, the published set {stored.size:,}")
    if rows_digest(rows) != stored.rows_sha256 and not accept:
        raise DataError(
            f"{stored.name}: questions or answers of {stored.hub.repo}, or their order, differ from the published set: "
            f"sha256 {rows_digest(rows)}, should be {stored.rows_sha256}. To use them anyway, knowing that "
            f"results may not be comparable, run `simplerl data prepare {stored.name} --accept`"
        )
    return _keep(stored, rows, f"hub:{stored.hub.repo}")


def _keep(stored: StoredSet, rows: list[Row], origin: str) -> list[Row]:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    atomic.write_bytes(cache_folder() / stored.prepared, content)
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": len(rows),
        "origin": origin,
        "pinned": rows_digest(rows) == stored.rows_sha256,
    }
    atomic.write_json(_manifest(stored), record)
    return rows


def _missing(stored: StoredSet, path: str | Path | None, hub: str) -> MissingError:
    names = " and ".join(f"{file.name}[.gz]" for file in stored.files)
    folder = data_folder()
    data = f"SIMPLERL_DATA={folder}" + ("" if folder.is_dir() else " (no such folder)") if folder else ""
    looked = (
        [f"{path} (given)"]
        if path is not None
        else [data or "SIMPLERL_DATA (not set)", f"the cache {cache_folder()}", f"the hub ({hub})"]
    )
    prepare_line = f", or run `simplerl data prepare {stored.name}` with a connection" if stored.hub else ""
    return MissingError(
        f"{stored.name} ({stored.kind}) not found. Looked for {names} in: {'; '.join(looked)}. "
        f"Put {names} into a folder and name it in SIMPLERL_DATA{prepare_line}"
    )
