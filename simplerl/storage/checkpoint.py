"""Checkpoints: safetensors and plain JSON in `checkpoints/step-000012/`, with a manifest of checksums.

Checkpoints are written atomically (`simplerl.storage.atomic`) and trusted only if every checksum matches. Nothing is
ever pickled. torch is imported inside the functions that need it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplerl.errors import CheckpointError
from simplerl.storage import atomic

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]

MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(rf"(?:{re.escape(atomic.REPLACED)})?step-(\d+)")


def checkpoint_path(folder: Path, step: int) -> Path:
    return Path(folder) / "checkpoints" / f"step-{step:06d}"


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step into the run folder and return its path.

    `tensors` holds named sets of tensors ("actor", "critic", "actor_optimizer"), each one safetensors file, on any
    device; `state` is plain JSON. Raises `DiskFullError`, and `CheckpointError` for a state that is not JSON.
    """
    wanted = sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values())
    wanted += len(_state_text(state))

    def fill(temporary: Path) -> Mapping[str, Any]:
        for name, part in tensors.items():
            save_tensors(temporary / f"{name}.safetensors", part)
        return state

    return write(folder, step, fill, wanted)


def write(folder: Path, step: int, fill: Callable[[Path], Mapping[str, Any]], wanted: int | None = None) -> Path:
    """Write a checkpoint whose files `fill` puts into a temporary folder; `fill` returns the state.

    A set of tensors is a safetensors file, or a folder of them, see `simplerl.storage.sharded`. `wanted` is the size in
    bytes, for the error of a full disk.
    """
    path = checkpoint_path(folder, step)
    with atomic.new_folder(path, wanted) as temporary:
        (temporary / STATE).write_text(_state_text(fill(temporary)), encoding="utf-8")
        files = {
            file.relative_to(temporary).as_posix(): {"sha256": atomic.sha256(file), "bytes": file.stat().st_size}
            for file in sorted(temporary.rglob("*"))
            if file.is_file()
        }
        manifest = json.dumps({"format": 1, "step": step, "files": files}, indent=2)
        (temporary / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    return path


def latest(folder: Path) -> tuple[Path, list[str]] | None:
    """The newest complete checkpoint, and a notice for each newer one that is damaged.

    None if there is no checkpoint at all. Raises `CheckpointError` if there are some and none is complete: the user
    decides whether to start again from step 1.
    """
    faults = []
    for path in reversed(checkpoints(folder).values()):
        fault = find_fault(path)
        if fault is None:
            return path, [f"{text}; using {path.name}" for text in faults]
        faults.append(f"checkpoint {path.name} is torn: {fault}")
    if faults:
        raise CheckpointError(
            f"no checkpoint in {Path(folder) / 'checkpoints'} is complete:\n  " + "\n  ".join(faults) + "\n"
            "Restore one from a copy, or delete that folder to train this run again from step 1."
        )
    return None


def load(path: Path, device: str = "cpu") -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors, by set, and the state of a checkpoint, bit for bit as saved. Checks no checksum; `latest` does."""
    state = load_state(path)
    return {name: load_tensors(Path(path), name, device) for name in sets(path)}, state


def load_state(path: Path) -> dict[str, Any]:
    """The state alone. Raises `CheckpointError` for a damaged checkpoint."""
    sets(path)
    try:
        return json.loads((Path(path) / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def sets(path: Path) -> list[str]:
    """Names of a checkpoint's sets of tensors."""
    manifest = _manifest(Path(path))
    if isinstance(manifest, str):
        raise CheckpointError(f"checkpoint {path} is torn: {manifest}")
    tensors = [name for name in manifest["files"] if name.endswith(".safetensors")]
    return list(dict.fromkeys(name.partition("/")[0].removesuffix(".safetensors") for name in tensors))


def shapes(path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a set's tensors. Reads no tensor."""
    from safetensors import SafetensorError, safe_open

    from simplerl.storage import sharded as shards

    if (path / name).is_dir():
        return shards.shapes(path / name)
    try:
        with safe_open(path / f"{name}.safetensors", framework="np") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return found | {key: found[stored] for key, stored in _aliases(file).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path / name} cannot be read: {error}") from error


def load_tensors(path: Path, name: str, device: str = "cpu") -> dict[str, Tensor]:
    """A set's tensors, complete even if ranks wrote shards."""
    from simplerl.storage import sharded as shards

    if (path / name).is_dir():
        return {key: tensor.to(device) for key, tensor in shards.read_whole(path / name).items()}
    return _load_file(path / f"{name}.safetensors", device)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        raise CheckpointError(f"{path} is not named like a checkpoint, step-000012")
    return int(match[1])


def find_fault(path: Path, *, checksums: bool = True) -> str | None:
    """Why a checkpoint cannot be trusted, as text; None if it is complete.

    Without `checksums` only the manifest and the sizes are compared, which finds truncated files.
    """
    manifest = _manifest(path)
    if isinstance(manifest, str):
        return manifest
    for name, entry in manifest["files"].items():
        fault = _file_fault(path / name, entry, checksums)
        if fault is not None:
            return fault
    return None


def prune(folder: Path, keep: int) -> list[str]:
    """Delete all but the newest `keep` complete checkpoints, damaged ones, and leftovers of killed writers.

    Returns the names deleted. Compares sizes only: checksums after every save would read every byte.
    """
    whole, doomed = [], []
    for path in checkpoints(folder).values():
        (whole if find_fault(path, checksums=False) is None else doomed).append(path)
    doomed += whole[: max(0, len(whole) - max(1, keep))]
    kept = set(checkpoints(folder).values()) - set(doomed)
    doomed += [p for p in _folder(folder).glob(f"{atomic.REPLACED}*") if p not in kept and p not in doomed]
    for path in doomed:
        atomic.remove(path)
    return [path.name for path in doomed] + atomic.remove_leftovers(_folder(folder))


# --- files ------------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Path:
    return Path(folder) / "checkpoints"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step, oldest first. A replaced one counts only until its replacement exists."""
    found: dict[int, Path] = {}
    for path in sorted(_folder(folder).glob("*")):  # ".old-step-..." sorts before "step-..."
        match = _NAME.fullmatch(path.name)
        if match is not None and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _state_text(state: Mapping[str, Any]) -> str:
    try:
        return json.dumps(state, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state of a checkpoint must be plain JSON with finite numbers: {error}") from error


def _manifest(path: Path) -> dict[str, Any] | str:
    """The manifest, or what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        whole = all(isinstance(e["sha256"], str) and isinstance(e["bytes"], int) for e in manifest["files"].values())
        if not whole or STATE not in manifest["files"]:
            return f"{MANIFEST} does not list its files"
        if manifest["step"] != step_of(path):
            return f"{MANIFEST} is of step {manifest['step']}"
        return manifest
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error!r})"


def _file_fault(file: Path, entry: Mapping[str, Any], checksums: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"{file.name} has {size:,} bytes but the manifest says {entry['bytes']:,}"
        digest = atomic.sha256(file) if checksums else entry["sha256"]
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    if digest != entry["sha256"]:
        return f"{file.name} has sha256 {digest[:12]}... but the manifest says {entry['sha256'][:12]}..."
    return None


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Write one safetensors file. A tensor of several names (tied weights) is stored once; the header has the rest."""
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    storages: set[Any] = set()
    for name, tensor in tensors.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        view = (*storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if view in names:
            aliases[name] = names[view]
            continue
        names[view] = name
        tensor = tensor.detach().contiguous()
        # safetensors refuses two tensors of one storage; a copy of the second view is what a loader would get
        stored[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    save_file(stored, path, metadata={"format": "pt", "aliases": json.dumps(aliases)})


def _load_file(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = _aliases(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tensors | {name: tensors[stored] for name, stored in aliases.items()}


def _aliases(file: Any) -> dict[str, str]:
    return json.loads((file.metadata() or {}).get("aliases", "{}"))
