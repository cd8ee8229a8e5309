"""Files exist whole or not at all, also when the disk fills up half-way."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simplerl.storage import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill_disk_after(monkeypatch, room):
    """From now on `os.write` has room for so many more bytes, like a disk that fills up."""
    write, left = os.write, [room]

    def limited(descriptor, data):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, bytes(data)[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", limited)


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "sub" / "a.bin"
    atomic.write_bytes(path, b"x" * 100)
    atomic.write_bytes(path, b"yz")

    assert path.read_bytes() == b"yz"
    assert names(path.parent) == ["a.bin"]


def test_write_survives_short_writes(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    atomic.write_text(tmp_path / "a.txt", "zehn größere Zeichen")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zehn größere Zeichen"


def test_everything_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append(os.readlink(f"/proc/self/fd/{d}")), sync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    atomic.write_bytes(tmp_path / "a.bin", b"1")

    assert os.path.basename(calls[0]).startswith(".tmp-")
    assert calls[1:] == ["rename", str(tmp_path)]


@pytest.mark.parametrize("room", [0, 1, 4999])
def test_full_disk_keeps_the_old_file_and_says_what_was_wanted(tmp_path, monkeypatch, room):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    fill_disk_after(monkeypatch, room)

    with pytest.raises(atomic.DiskFullError) as caught:
        atomic.write_bytes(path, b"n" * 5000)

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]
    assert (
        str(path) in str(caught.value) and "needs 5,000 bytes" in str(caught.value) and "are free" in str(caught.value)
    )


@pytest.mark.parametrize("room", [0, 1, 19])
def test_full_disk_leaves_no_half_line(tmp_path, monkeypatch, room):
    path = tmp_path / "m.jsonl"
    atomic.append_line(path, b'{"step":1}')
    fill_disk_after(monkeypatch, room)

    with pytest.raises(atomic.DiskFullError, match="needs 20 bytes"):
        atomic.append_line(path, b"x" * 19)

    assert path.read_bytes() == b'{"step":1}\n'


def test_other_errors_pass_unchanged_and_leave_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.new_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


REAL_FULL_DISK = """
    import sys, pathlib, torch
    from simplerl.storage import atomic, checkpoint
    from simplerl.storage.records import RunFolder
    room = pathlib.Path(sys.argv[1])
    checkpoint.save(room, 1, {"actor": {"w": torch.zeros(1000)}}, {})
    row = {"step": 1, "problem_id": "p", "text": ""}
    noise = torch.randint(32, 126, (3_000_000,), dtype=torch.uint8).numpy().tobytes().decode()
    attempts = {
        "file": lambda: atomic.write_bytes(room / "big", b"x" * 3_000_000),
        "checkpoint": lambda: checkpoint.save(room, 2, {"actor": {"w": torch.zeros(1_000_000)}}, {}),
        "rollouts": lambda: RunFolder(room).write_rollouts(2, [row | {"text": noise}]),
        "line": lambda: RunFolder(room).append_metrics({"step": 1, "x": "y" * 3_000_000}),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except atomic.DiskFullError as error:
            print(name, "full:", error)
    print(sorted(str(p.relative_to(room)) for p in room.rglob("*") if p.is_file()))
    print(checkpoint.latest(room)[0].name, (room / "metrics.jsonl").stat().st_size)
"""


def test_a_disk_that_is_really_full_leaves_the_last_good_state(tmp_path):
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"', "sh"]
    script = [sys.executable, "-c", textwrap.dedent(REAL_FULL_DISK), str(tmp_path)]
    try:
        subprocess.run([*mounted, str(tmp_path), "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"mounting a small file system is not permitted here: {error}")
    done = subprocess.run([*mounted, str(tmp_path), *script], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    *full, files, good = done.stdout.splitlines()
    assert [line.split()[0] for line in full] == ["file", "checkpoint", "rollouts", "line"]
    assert "needs 4,000,003 bytes" in full[1]
    whole = [f"checkpoints/step-000001/{name}" for name in ("actor.safetensors", "manifest.json", "state.json")]
    assert files == str([*whole, "metrics.jsonl"])
    assert good == "step-000001 0"


def test_folder_appears_whole_and_replaces_the_one_before(tmp_path):
    for text in ("one", "two"):
        with atomic.new_folder(tmp_path / "f") as temporary:
            (temporary / text).write_text(text)
            assert not (tmp_path / "f" / text).exists()
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["two"]


def test_failed_folder_leaves_the_one_before(tmp_path):
    with atomic.new_folder(tmp_path / "f") as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic.new_folder(tmp_path / "f") as temporary:
        (temporary / "two").write_text("2")
        raise RuntimeError
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["one"]


def test_leftovers_of_killed_writers_are_removed_and_named(tmp_path):
    (tmp_path / ".tmp-1-aa-f").mkdir()
    (tmp_path / ".tmp-1-aa-f" / "x").write_text("x")
    (tmp_path / ".tmp-2-bb-g").write_text("x")
    (tmp_path / "kept").write_text("x")
    assert atomic.remove_leftovers(tmp_path) == [".tmp-1-aa-f", ".tmp-2-bb-g"]
    assert names(tmp_path) == ["kept"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=5), st.integers(0, 200))
def test_append_after_a_tear_anywhere_keeps_exactly_the_whole_lines(tmp_path, lines, cut):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"")
    for line in lines:
        atomic.append_line(path, line)
    torn = path.read_bytes()[:cut]
    path.write_bytes(torn)
    atomic.append_line(path, b"next")
    assert path.read_bytes() == torn[: torn.rfind(b"\n") + 1] + b"next\n"


def test_torn_line_longer_than_a_block_is_found(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"good\n" + b"x" * 200_000)
    atomic.append_line(path, b"next")
    assert path.read_bytes() == b"good\nnext\n"


def test_json_keeps_the_bits_of_floats_and_refuses_nan(tmp_path):
    import json

    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0]
    atomic.write_json(tmp_path / "a.json", values)
    assert [v.hex() for v in json.loads((tmp_path / "a.json").read_text())] == [v.hex() for v in values]
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "a.json", float("nan"))
