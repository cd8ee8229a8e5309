"""Memory and rates of GPUs, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from simplerl.errors import ConfigError
from simplerl.formatting import did_you_mean

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU. Rates are the vendor's, for dense matrix products."""

    name: str
    mib: int
    """Memory in MiB as the driver reports it (`nvidia-smi`)."""

    bfloat16: float
    """FLOP/s of bfloat16 matrix products that accumulate in float32."""

    float32: float
    """FLOP/s of float32 without tensor cores, torch's default for float32 products."""

    bandwidth: float
    """Memory bandwidth in bytes/s."""

    link: float
    """Bytes/s to the other GPUs of its node, one way: NVLink, or PCIe if it has none."""

    @property
    def memory(self) -> int:
        """Memory in bytes."""
        return self.mib * MIB


# From NVIDIA's data sheets; memory as `nvidia-smi` prints it.
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H100", 81_559, 989e12, 67e12, 3.35e12, 450e9),
        GPU("H200", 143_771, 989e12, 67e12, 4.8e12, 450e9),
        GPU("B200", 183_359, 2250e12, 80e12, 8.0e12, 900e9),
        GPU("A100", 81_920, 312e12, 19.5e12, 2.04e12, 300e9),
        GPU("A100-40", 40_960, 312e12, 19.5e12, 1.56e12, 300e9),
        GPU("L40S", 46_068, 362e12, 91.6e12, 0.864e12, 32e9),
        GPU("L4", 23_034, 121e12, 30.3e12, 0.3e12, 32e9),
        GPU("A10", 23_028, 125e12, 31.2e12, 0.6e12, 32e9),
        GPU("RTX4090", 24_564, 165e12, 82.6e12, 1.01e12, 32e9),
        GPU("RTX3090", 24_576, 71e12, 35.6e12, 0.936e12, 32e9),
    )
}
ALIASES = {"A100-80": "A100", "4090": "RTX4090", "3090": "RTX3090"}


@dataclass(frozen=True, slots=True)
class Hardware:
    """GPUs of one kind, in nodes with equally many of them."""

    gpu: GPU
    per_node: int
    nodes: int = 1

    @property
    def count(self) -> int:
        """GPUs of all nodes."""
        return self.per_node * self.nodes

    def __str__(self) -> str:
        one = f"{self.per_node} x {self.gpu.name}"
        return one if self.nodes == 1 else f"{self.nodes} nodes of {one}"


def parse_hardware(text: str, nodes: int = 1) -> Hardware:
    """Hardware from a text such as `8xH100` or `H100`, the GPUs of one node.

    Raises `ConfigError` for an unknown GPU and for counts below 1.
    """
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?(.+)", text.strip())
    count, name = (match[1] or "1", match[2]) if match else ("1", text)
    if int(count) < 1 or nodes < 1:
        raise ConfigError(f"--gpus {text} --nodes {nodes}: both counts must be at least 1")
    return Hardware(_find_gpu(name), int(count), nodes)


def _find_gpu(name: str) -> GPU:
    plain = re.sub(r"[\s_]", "", name).upper().removeprefix("NVIDIA").removesuffix("GB")
    found = GPUS.get(ALIASES.get(plain, plain))
    if found is None:
        hint = did_you_mean(plain, GPUS, show=str)
        raise ConfigError(f"--gpus: unknown GPU {name!r}{hint} Known: {', '.join(GPUS)}; for example 8xH100")
    return found
