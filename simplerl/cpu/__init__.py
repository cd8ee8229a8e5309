"""Fast paths for a CPU: C kernels, models that run on them, and threads that compute side by side.

Optional: without a C compiler, on another device, or for a model that the kernels do not support, callers use torch.

Other packages import the names below, never a submodule. Importing this package compiles nothing; the first call that
has to know whether the kernels are available compiles them (about 3 s, kept in the user's cache).

- Availability: `kernels_available`, `unavailable_reason`; `TILE`, of which weight sizes must be multiples.
- Training: `fuse_for_training` replaces the forward passes of a model's layers.
- Decoding: `FusedDecoder` runs prefill and decode steps of a model that `can_decode`.
- Sampling: `draw_tokens`; `RowDraws` also records the tokens in a batch's `DrawBuffers`.
- Threads: `CPUThreads`, `thread_count`, `MAX_DEFAULT_THREADS`.
- Profiling: `trace_kernels` names kernel calls in a trace.
"""

from simplerl.cpu.decoding import DrawBuffers, RowDraws
from simplerl.cpu.fused_decoder import FusedDecoder, can_decode
from simplerl.cpu.library import kernels_available, unavailable_reason
from simplerl.cpu.llama import fuse_for_training
from simplerl.cpu.ops import draw_tokens, trace_kernels
from simplerl.cpu.threads import CPUThreads, thread_count
from simplerl.cpu_sizes import MAX_DEFAULT_THREADS, TILE

__all__ = [
    "MAX_DEFAULT_THREADS",
    "TILE",
    "CPUThreads",
    "DrawBuffers",
    "FusedDecoder",
    "RowDraws",
    "can_decode",
    "draw_tokens",
    "fuse_for_training",
    "kernels_available",
    "thread_count",
    "trace_kernels",
    "unavailable_reason",
]
