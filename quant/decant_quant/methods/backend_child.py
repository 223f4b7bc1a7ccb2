# Three libraries without types, which live in the environments of the interpreters that run this file.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false
"""Run by the interpreter that has gptqmodel, llm-compressor or AutoRound: `JOB.json` quantizes one model.

A job has `library`, `model`, `output`, `rows` (token ids), `bits`, `group_size`, `sym` and `scheme`; whatever
it does not say is the library's default. It imports nothing else of this package, which that environment need
not have.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def gptqmodel(job: dict[str, Any]) -> None:
    """GPTQ by gptqmodel, as its own quick-start does it."""
    # Left to itself it crashes on two cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import GPTQConfig

    config = GPTQConfig(bits=job["bits"], group_size=job["group_size"], sym=job["sym"])
    model = GPTQModel.load(job["model"], config, device=_device())
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["rows"]]
    model.quantize(rows, batch_size=1)
    model.save(job["output"])


def llmcompressor(job: dict[str, Any]) -> None:
    """One of llm-compressor's schemes, in one shot."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = job["rows"]
    told: dict[str, Any] = {}
    if job["scheme"] != "FP8":
        told = {
            "dataset": Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]}),
            "max_seq_length": max(len(row) for row in rows),
            "num_calibration_samples": len(rows),
            "tokenizer": tokenizer,
        }
    oneshot(model=model, recipe=_modifiers(job), **told)
    model.save_pretrained(job["output"], save_compressed=True)


def _modifiers(job: dict[str, Any]) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    common: dict[str, Any] = {"targets": "Linear", "ignore": ["lm_head"]}
    if job["scheme"] == "FP8":
        return [QuantizationModifier(scheme="FP8_DYNAMIC", **common)]
    if job["scheme"] == "W8A8":
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        return [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(scheme="W8A8", **common)]
    whole = job["group_size"] == -1
    weights = {
        "num_bits": job["bits"],
        "type": "int",
        "symmetric": job["sym"],
        "strategy": "channel" if whole else "group",
        **({} if whole else {"group_size": job["group_size"]}),
    }
    return [
        GPTQModifier(
            config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
        )
    ]


def autoround(job: dict[str, Any]) -> None:
    """Rounding learned by signed gradients, exported in GPTQ's layout."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    length = min(len(row) for row in job["rows"])
    rows: Any = [{"input_ids": torch.tensor([row[:length]])} for row in job["rows"]]
    rounding = AutoRound(
        model,
        tokenizer=tokenizer,
        bits=job["bits"],
        group_size=job["group_size"],
        sym=job["sym"],
        dataset=torch.utils.data.DataLoader(rows, batch_size=None),
        seqlen=length,
        nsamples=len(rows),
        batch_size=1,
        device_map=_device(),
    )
    output = Path(job["output"])
    rounding.quantize_and_save(str(output), format="auto_gptq")
    # It names a folder of its own for the scheme.
    made = next(path.parent for path in output.rglob("config.json"))
    if made != output:
        for file in made.iterdir():
            file.replace(output / file.name)
        made.rmdir()


def _device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


LIBRARIES = {"gptqmodel": gptqmodel, "llmcompressor": llmcompressor, "autoround": autoround}


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    LIBRARIES[told["library"]](told)
