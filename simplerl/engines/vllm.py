"""The vLLM engine: continuous batching, a paged cache.

All that a release of vLLM may break is in this file, `_vllm.py` and `_vllm_sender.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from simplerl.config import LoraConfig
from simplerl.engines._vllm import OLDEST, PACKAGES, TRANSFER, check_version, set_environment, torch_as_it_was
from simplerl.engines.base import ASLEEP, Engine, EngineConfig, Weights
from simplerl.errors import EngineError
from simplerl.types import Request, Rollout, Transfer

if TYPE_CHECKING:
    from torch import Tensor

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM reserves room for."""


class Config(EngineConfig):
    """Settings of the vLLM engine."""

    name: Literal["vllm"] = "vllm"

    can_receive_weights: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = PACKAGES

    max_length: int | None = Field(default=None, ge=2)
    """Tokens of prompt and response together; empty: all positions of the model. A lower one saves cache."""

    gpu_memory: float = Field(default=0.4, gt=0, lt=1)
    """Share of a GPU's memory for vLLM's weights and cache; the learner needs the rest."""

    cpu_cache_gib: int = Field(default=2, ge=1)
    """On a CPU, the cache's size."""

    eager: bool | None = None
    """Without CUDA graphs and compilation; empty: on a CPU, where they take long to make."""

    prefix_caching: bool = True
    """Compute a prompt once for its responses."""

    sleep: bool = False
    """Give the GPU's memory back while the learner works (vLLM's sleep mode); needs CUDA."""


def build(
    config: Config,
    model_path: str,
    tokenizer: Any,
    *,
    dtype: str,
    device: str,
    trust_remote_code: bool = False,
    lora: LoraConfig | None = None,
    transfer: Transfer | None = None,
    **_: Any,
) -> VLLMEngine:
    """An engine with its own copy of the model; `dtype` is "float32" or "bfloat16", `device` "cpu" or "cuda".

    With `lora` weights come as adapters, which vLLM computes with beside its own. `transfer` is how a learner will send
    weights, see `Receiver`.
    Raises `EngineError` where vLLM is missing or of a release that this file does not know.
    """
    check_sleep(config, device)
    check_version(OLDEST if transfer is None else TRANSFER)
    set_environment()
    from transformers import AutoConfig
    from vllm import LLMEngine

    from simplerl.engines._ends import Ends

    model = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    text = model.get_text_config()
    limit = config.max_length or text.max_position_embeddings
    ends = Ends(tokenizer, end_ids(model_path, model), text.vocab_size)
    expected = expected_weights(model, trust_remote_code)
    own = {"model": model_path, "dtype": dtype, "trust_remote_code": trust_remote_code, **adapter_arguments(lora)}
    if transfer is not None:
        own["weight_transfer_config"] = {"backend": transfer}
    wanted = arguments(config, device, length=limit, **own)
    with torch_as_it_was():
        engine = LLMEngine.from_engine_args(wanted)
    return VLLMEngine(engine, ends, expected, text.vocab_size, limit, lora)


def adapter_arguments(lora: LoraConfig | None) -> dict[str, Any]:
    """vLLM's settings for them; it has room for some ranks only. Raises `EngineError` beyond the largest."""
    if lora is None:
        return {}
    room = next((rank for rank in RANKS if rank >= lora.rank), None)
    if room is None:
        raise EngineError(f"model.lora.rank={lora.rank}: vLLM has room for {RANKS[-1]} at most")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def arguments(config: Config, device: str, *, length: int, **model: Any) -> Any:
    """vLLM's own settings."""
    from vllm import EngineArgs

    cpu = device == "cpu"
    return EngineArgs(
        **model,
        max_model_len=length,
        max_num_seqs=config.max_batch,
        gpu_memory_utilization=config.gpu_memory,
        kv_cache_memory_bytes=config.cpu_cache_gib << 30 if cpu else None,
        enforce_eager=cpu if config.eager is None else config.eager,
        enable_prefix_caching=config.prefix_caching,
        enable_sleep_mode=config.sleep,
        # A prompt computed in parts rewinds its request's generator, which on a CPU raises (0.32).
        enable_chunked_prefill=False if cpu else None,
        max_num_batched_tokens=max(length, 8192) if cpu else None,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        use_tqdm_on_load=False,
        disable_log_stats=True,
        seed=0,
    )


def check_sleep(config: Config, device: str) -> None:
    if config.sleep and device == "cpu":
        raise EngineError(
            "engine.sleep=true is vLLM's sleep mode, which gives a GPU's memory back, but the engine runs on a CPU; "
            "leave it false there"
        )


def end_ids(model_path: str, model: Any) -> set[int]:
    """The end tokens of the model's generation settings."""
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(model_path)
    except OSError:
        settings = GenerationConfig.from_model_config(model)
    found = settings.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def expected_weights(model: Any, trust_remote_code: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By every name that a weight has: the one that vLLM reads it under, and its shape. Nothing is allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model, trust_remote_code=trust_remote_code)
    first: dict[int, str] = {}
    return {
        name: (first.setdefault(id(weight), name), tuple(weight.shape))
        for name, weight in empty.named_parameters(remove_duplicate=False)
    }


def renew_tied_head(model: Any) -> None:
    """On a CPU vLLM computes with a repacked copy of the head; a reload leaves that of tied weights stale (0.32)."""
    head = getattr(model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(head)


def write_adapters(folder: Path, weights: Weights, lora: LoraConfig) -> None:
    """A folder as `peft` writes one, which is how vLLM takes adapters."""
    from safetensors.torch import save_file

    given = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in weights}
    adapted = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in given})
    settings = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "target_modules": adapted}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(given, folder / "adapter_model.safetensors")


class VLLMEngine(Engine):
    """An `Engine` around vLLM's own."""

    can_sleep = True

    def __init__(
        self,
        engine: Any,
        ends: Any,
        expected: Mapping[str, tuple[str, tuple[int, ...]]],
        vocabulary: int,
        max_length: int,
        lora: LoraConfig | None = None,
    ) -> None:
        self._engine, self._ends, self._expected = engine, ends, expected
        self._vocabulary, self._max_length, self._lora = vocabulary, max_length, lora
        self._adapters: Any = None
        self._loads = 0
        self._version: int | None = 0
        self._running: dict[str, Request] = {}
        self._asleep = False

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Yields each rollout as it finishes; log-probs are those of the distribution a token was drawn from."""
        from simplerl.engines._checks import check_requests

        check_requests(requests, self._vocabulary, self._max_length)
        return self._run(list(requests))

    def load_weights(self, weights: Weights, version: int) -> None:
        """Replaces every weight and forgets cached prefixes; nothing is touched when the weights do not fit."""
        self._idle("load_weights")
        if self._lora is None:
            self._replace(weights)
        else:
            self._adapt(weights, self._lora)
        self._hold(version)

    def init_transfer(self, how: Mapping[str, Any]) -> None:
        self._engine.collective_rpc("shutdown_weight_transfer_engine")
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": dict(how)})

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._idle("begin_update")
        self._check(shapes)
        self._open()
        self._engine.collective_rpc("start_weight_update")

    def receive_weights(self, what: Mapping[str, Any]) -> None:
        self._engine.collective_rpc("update_weights", kwargs={"update_info": dict(what)})

    def finish_update(self, version: int) -> None:
        self._engine.collective_rpc("finish_weight_update")
        self._renew()
        self._hold(version)

    def _idle(self, what: str) -> None:
        if self._running:
            raise EngineError(f"{what} while rollouts are in flight; finish or close them")

    def _hold(self, version: int) -> None:
        """The weights are there: wakes what still sleeps, forgets what was computed with those before."""
        if self._asleep:
            self._engine.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._engine.reset_prefix_cache():
            raise EngineError(f"vLLM kept cached prefixes of the weights before version {version}")
        self._version = version

    def _replace(self, weights: Weights) -> None:
        given = self._fitting(weights)
        self._open()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(given.items())})
        self._renew()

    def _renew(self) -> None:
        if len({name for name, _ in self._expected.values()}) < len(self._expected):
            self._engine.apply_model(renew_tied_head)

    def _adapt(self, weights: Weights, lora: LoraConfig) -> None:
        """Adapters under a number of their own, so that nothing of those before can be taken for theirs."""
        from vllm.lora.request import LoRARequest

        with TemporaryDirectory(prefix="adapters-") as folder:
            write_adapters(Path(folder), weights, lora)
            self._open()
            if self._adapters is not None:
                self._engine.remove_lora(self._adapters.lora_int_id)
            self._loads += 1
            self._adapters = LoRARequest(f"policy-{self._loads}", self._loads, folder)
            if not self._engine.add_lora(self._adapters):
                raise EngineError(f"vLLM did not take the adapters of load {self._loads}")

    def _open(self) -> None:
        """From here on the weights are incomplete until a load is done."""
        import torch

        self._version = None
        if self._asleep:
            torch.cuda.empty_cache()  # what torch keeps for a learner in this process, vLLM cannot take
            self._engine.wake_up(tags=["weights"])

    def sleep(self) -> None:
        """Gives the GPU's memory back, that of the weights too: they come anew. Under adapters they wait on the CPU."""
        if self._running:
            raise EngineError("sleep while rollouts are in flight; finish or close them")
        if not self._asleep:
            self._asleep = True
            self._engine.sleep(level=2 if self._lora is None else 1)

    def close(self) -> None:
        """Ends vLLM's engine core and frees its memory."""
        self._engine.engine_core.shutdown()

    def _run(self, requests: list[Request]) -> Iterator[Rollout]:
        if self._asleep:
            raise EngineError(ASLEEP)
        if self._version is None:
            raise EngineError("the engine's weights are incomplete since the last load_weights failed; load them again")
        if self._running:
            raise EngineError("this engine answers one set of requests at a time; finish or close the one before")
        self._running = {request.id: request for request in requests}
        started: list[str] = []
        try:
            started += map(self._start, requests)
            while self._running:
                for output in self._engine.step():
                    if output.finished:
                        yield self._rollout(self._running.pop(output.request_id), output.outputs[0])
        finally:
            if self._running:
                self._running = {}
                self._engine.abort_request(started, internal=True)

    def _start(self, request: Request) -> str:
        """Hands a request over; vLLM's own name for it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        ends, strings = self._ends.stops(sampling.stop)
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop=list(strings),
            stop_token_ids=sorted(ends),
            ignore_eos=True,  # it is among the end tokens
            logprobs=0,
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": list(request.prompt.token_ids)}
        return self._engine.add_request(request.id, prompt, parameters, lora_request=self._adapters)

    def _rollout(self, request: Request, output: Any) -> Rollout:
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(f"request {request.id}: vLLM ended it with {output.finish_reason!r}")
        assert self._version is not None
        ids = tuple(output.token_ids)
        logprobs = tuple(each[token].logprob for token, each in zip(ids, output.logprobs, strict=True))
        text = self._ends.text(request.sampling.stop, ids)
        return Rollout.single_turn(request.id, request.prompt, ids, logprobs, text, output.finish_reason, self._version)

    def _fitting(self, weights: Weights) -> dict[str, Tensor]:
        """The weights under vLLM's names. Raises `EngineError` where they do not fit."""
        given = {name: tensor.detach() for name, tensor in weights}
        self._check({name: tuple(tensor.shape) for name, tensor in given.items()})
        return {self._expected[name][0]: tensor for name, tensor in given.items()}

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `EngineError` with the weights that are unknown, missing or of another shape."""
        problems, given = [], set[str]()
        for name, shape in shapes.items():
            known, wanted = self._expected.get(name, ("", ()))
            given.add(known)
            if not known:
                problems.append(f"{name}: unknown")
            elif wanted != shape:
                problems.append(f"{name}: shape {shape}, wants {wanted}")
        problems += [
            f"{name}: missing" for name in dict.fromkeys(k for k, _ in self._expected.values()) if name not in given
        ]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise EngineError(f"weights do not fit the engine's model: {shown}")
