"""`transformers.generate`, one measured batch at a time. Run by any interpreter with transformers; see `_serve`."""

# pyright: reportMissingImports=false

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from _serve import Server, read_job


def main() -> None:
    job, server = read_job(), Server()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(job["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    if job["compile"]:
        model.forward = torch.compile(model.forward, dynamic=True)
    ids = torch.tensor([p["ids"] for p in job["prompts"][: job["prompts_per_step"]] for _ in range(job["samples"])])
    new = job["max_tokens"]
    # The model's own settings name no end token, so every response has the full length.
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": new, "pad_token_id": 0}

    def measure() -> dict[str, Any]:
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
        assert out.shape[1] == ids.shape[1] + new, out.shape
        return {"responses": len(ids), "tokens": len(ids) * new}

    server.serve(measure, versions={name: version(name) for name in ("torch", "transformers")})


if __name__ == "__main__":
    main()
