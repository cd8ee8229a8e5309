"""JSON lines: those of our own files, which may be read while they are written, and those of users' files."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import orjson

from simplerl.errors import DataError, SimpleRLError

Row = Mapping[str, Any]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# --- our own ----------------------------------------------------------------------------------------------------------


def line(row: Row) -> bytes:
    """A row as a line without its newline: step, set and temperature first, other names in order."""
    # Names in a fixed order: where a row was gathered through a set, Python's hash seed would decide it.
    first = {key: row[key] for key in ("step", "set", "temperature") if key in row}
    return orjson.dumps(first | dict(sorted(row.items())), option=orjson.OPT_SERIALIZE_NUMPY)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of ours; a last line without its newline is still being written and is not read."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            yield orjson.loads(line)
        except ValueError as error:
            # A crash can leave a last line of zeros; anywhere else the file is damaged and the user should know.
            if number < len(lines):
                raise SimpleRLError(f"{path}, line {number} is damaged: {error}") from error


# --- of users ---------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line, from 1, and its object, of a user's file; unpacks a file whose name ends in .gz.

    Reads line by line, so that memory stays bounded. Raises `DataError`.
    """
    with opened(path) as file:
        yield from parse_jsonl(file, path)


def parse_jsonl(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbers and objects of a user's lines, but blank ones, as `read_jsonl` gives them; `path` is for errors."""
    # Not orjson: it makes floats of whole numbers beyond 64 bits and refuses lone surrogates and NaN.
    # Bytes end in \n alone; text files would also be split at \r, and `splitlines` at U+2028.
    for number, content in enumerate(lines, start=1):
        if content.strip():
            content = content.removeprefix(_BYTE_ORDER_MARK) if number == 1 else content
            yield number, _object(content, f"{path}, line {number}")


def _object(content: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is not UTF-8: byte {error.start} is {content[error.start]:#04x}; save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}. Each line holds one object") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} holds a {type(row).__name__}, not an object with keys")
    return row


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """A user's file, unpacked if its name ends in .gz. Raises `DataError` where it cannot be read."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}. Fetch or copy it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
