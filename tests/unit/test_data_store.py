"""Where sets are looked for, and the checksums."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simplerl.data import store
from simplerl.data.hub import HubTable
from simplerl.data.store import MissingError, StoredFile, StoredSet, load_rows, prepare, rows_digest, whereabouts
from simplerl.errors import DataError

ROWS = [{"id": f"toy/{n}", "problem": f"{n}+1", "answer": str(n + 1)} for n in range(4)]


def content(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def stored_file(name: str, rows: list[dict[str, str]]) -> StoredFile:
    return StoredFile(name, len(rows), hashlib.sha256(content(rows)).hexdigest())


ONE = StoredSet("toy", "test", (stored_file("toy.jsonl", ROWS),), rows_digest(ROWS), HubTable("me/toy"))
# The odd rows were set apart; the set is all of them in the order of their numbers.
TWO = StoredSet(
    "toy", "train", (stored_file("even.jsonl", ROWS[::2]), stored_file("odd.jsonl", ROWS[1::2])), rows_digest(ROWS)
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMPLERL_DATA", raising=False)
    monkeypatch.setenv("SIMPLERL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, str]] | DataError], list[str]]:
    def install(answer: list[dict[str, str]] | DataError) -> list[str]:
        asked: list[str] = []

        def stored_rows(table: HubTable, prefix: str) -> list[dict[str, str]]:
            asked.append(table.repo)
            if isinstance(answer, DataError):
                raise answer
            return answer

        monkeypatch.setattr(store, "stored_rows", stored_rows)
        return asked

    return install


def put(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    packed = gzip.compress(content(rows)) if name.endswith(".gz") else content(rows)
    (folder / name).write_bytes(packed)
    return folder


def test_found_in_the_stated_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable) -> None:
    asked = hub(ROWS)
    assert whereabouts(ONE) == "hub: me/toy"
    assert load_rows(ONE) == ROWS and asked == ["me/toy"]
    assert whereabouts(ONE) == str(tmp_path / "cache")
    assert load_rows(ONE) == ROWS and asked == ["me/toy"], "the second time it comes from the cache"

    monkeypatch.setenv("SIMPLERL_DATA", str(put(tmp_path / "data", "toy.jsonl.gz", ROWS)))
    assert whereabouts(ONE) == str(tmp_path / "data")
    (tmp_path / "cache" / ONE.prepared).write_text("damaged, but not looked at")
    assert load_rows(ONE) == ROWS
    given = put(tmp_path / "given", "toy.jsonl", ROWS)
    (tmp_path / "data" / "toy.jsonl.gz").write_text("damaged, but not looked at")
    assert load_rows(ONE, given) == load_rows(ONE, given / "toy.jsonl") == ROWS


def test_files_of_one_set_are_put_back_in_order(tmp_path: Path) -> None:
    put(tmp_path, "even.jsonl", ROWS[::2])
    with pytest.raises(MissingError, match=r"Looked for even.jsonl\[.gz\] and odd.jsonl\[.gz\] in: .*given"):
        load_rows(TWO, tmp_path)
    assert load_rows(TWO, put(tmp_path, "odd.jsonl.gz", ROWS[1::2])) == ROWS


def test_a_damaged_file_names_both_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [*ROWS[:3], {**ROWS[3], "answer": "5"}]
    monkeypatch.setenv("SIMPLERL_DATA", str(put(tmp_path, "toy.jsonl", changed)))
    actual = hashlib.sha256(content(changed)).hexdigest()
    with pytest.raises(DataError, match=f"toy.jsonl is damaged.*{actual}, should be {ONE.files[0].sha256}"):
        load_rows(ONE)


def test_a_missing_set_says_where_it_looked_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable
) -> None:
    hub(DataError("hub: me/toy: no connection"))
    monkeypatch.setenv("SIMPLERL_DATA", "/no/such")
    with pytest.raises(MissingError) as caught:
        load_rows(ONE)
    for part in (
        "toy (test) not found",
        "toy.jsonl[.gz]",
        "SIMPLERL_DATA=/no/such (no such folder)",
        f"the cache {tmp_path / 'cache'}",
        "no connection",
        "name it in SIMPLERL_DATA",
        "simplerl data prepare toy",
    ):
        assert part in str(caught.value)


def test_a_set_the_hub_does_not_have_is_not_looked_for_there(hub: Callable) -> None:
    asked = hub(ROWS)
    with pytest.raises(MissingError, match="no data set of the hub") as caught:
        load_rows(TWO)
    assert not asked and "prepare" not in str(caught.value)


def test_the_hub_is_left_alone_when_told_to(hub: Callable) -> None:
    asked = hub(ROWS)
    with pytest.raises(MissingError, match="not asked"):
        load_rows(ONE, fetch=False)
    assert not asked


def test_rows_of_the_hub_are_checked_and_kept_only_if_accepted(hub: Callable) -> None:
    hub(ROWS[::-1])
    with pytest.raises(DataError, match=f"sha256 {rows_digest(ROWS[::-1])}, should be {ONE.rows_sha256}"):
        load_rows(ONE)
    assert whereabouts(ONE) == "hub: me/toy", "nothing was kept"
    kept = prepare(ONE, accept=True)
    assert (kept.rows, kept.origin, kept.pinned) == (4, "hub:me/toy", False)
    assert load_rows(ONE) == ROWS[::-1]


def test_another_number_of_rows_is_never_accepted(hub: Callable) -> None:
    hub(ROWS[:3])
    with pytest.raises(DataError, match="me/toy has 3 rows, the published set 4"):
        prepare(ONE, accept=True)


def test_prepare_copies_what_is_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data", "even.jsonl", ROWS[::2])
    monkeypatch.setenv("SIMPLERL_DATA", str(put(tmp_path / "data", "odd.jsonl", ROWS[1::2])))
    kept = prepare(TWO)
    assert (kept.origin, kept.pinned) == (str(tmp_path / "data"), True)
    monkeypatch.delenv("SIMPLERL_DATA")
    assert load_rows(TWO) == ROWS
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "train-toy.jsonl",
        "train-toy.jsonl.manifest.json",
    ]


def test_a_file_in_the_cache_that_was_never_finished_is_fetched_again(tmp_path: Path, hub: Callable) -> None:
    asked = hub(ROWS)
    put(tmp_path / "cache", ONE.prepared, ROWS[:2])
    assert load_rows(ONE) == ROWS and asked


def test_damage_in_the_cache_is_found(tmp_path: Path, hub: Callable) -> None:
    hub(ROWS)
    prepare(ONE)
    put(tmp_path / "cache", ONE.prepared, ROWS[:3])
    with pytest.raises(DataError, match=r"is damaged: sha256 is .*, was .* when it was written. Delete it"):
        load_rows(ONE)


def test_an_answer_that_was_repaired_in_the_file_is_given_as_published(tmp_path: Path) -> None:
    rows = [{"id": "toy/0", "problem": "q", "answer": "9", "answer_original": "None"}]
    repaired = StoredSet("toy", "train", (stored_file("toy.jsonl", rows),), "")
    assert load_rows(repaired, put(tmp_path, "toy.jsonl", rows)) == [{"id": "toy/0", "problem": "q", "answer": "None"}]
