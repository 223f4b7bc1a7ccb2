"""The parity guard at start-up: the artifact's golden prompts, answered by the engine that will serve it."""

import httpx

from decant.artifact import Manifest
from decant.golden import TOLERANCES, GoldenReport, Tolerance, compare
from decant_serve.engines.protocol import Engine

STAGE = "served"

# By manifest method; whatever is not listed is stored in 16 bits or more.
_PRECISIONS = {
    "gguf:Q8_0": "q8",
    "gguf:Q6_K": "q8",
    "gguf:Q5_K_M": "q8",
    "gguf:Q5_K_S": "q8",
    **dict.fromkeys((f"gguf:Q4_K_{size}" for size in "MS"), "q4"),
    **dict.fromkeys((f"gguf:Q3_K_{size}" for size in "LMS"), "q4"),
    "gguf:Q2_K": "q4",
    **dict.fromkeys((f"gguf:IQ4_{name}" for name in ("NL", "XS")), "q4"),
    **dict.fromkeys((f"gguf:IQ3_{name}" for name in ("M", "S", "XS", "XXS")), "q4"),
    **dict.fromkeys((f"gguf:IQ2_{name}" for name in ("M", "S", "XS", "XXS")), "q4"),
    **dict.fromkeys((f"gguf:IQ1_{name}" for name in "MS"), "q4"),
    "gguf:Q5_1": "q8",
    "gguf:Q5_0": "q8",
    "gguf:Q4_1": "q4",
    "gguf:Q4_0": "q4",
    "bnb:NF4": "q4",
    "bnb:INT8": "q8",
    "gptq": "q4",
    "awq": "q4",
    "w8a8": "q8",
    "fp8": "q8",
    "gptqmodel": "q4",
    "autoround": "q4",
    "llmcompressor:W4A16": "q4",
    "llmcompressor:W8A8": "q8",
    "llmcompressor:FP8": "q8",
    "dequantize:F32": "q4",
    "dequantize:F16": "q4",
    "dequantize:BF16": "q4",
}


async def check_golden(engine: Engine, client: httpx.AsyncClient, manifest: Manifest | None) -> GoldenReport:
    """Re-runs the golden prompts, one at a time; a report of nothing checked for a model that has none."""
    golden = manifest.golden if manifest else None
    if manifest is None or golden is None:
        return GoldenReport(
            stage=STAGE, checked=0, breaks=(), max_logprob_gap=0.0, mean_logprob_gap=0.0, flips=0
        )
    seen = [await engine.observe(client, prompt.messages, golden.max_tokens) for prompt in golden.prompts]
    return compare(golden, seen, stage=STAGE, tolerance=tolerance_for(manifest.method))


def tolerance_for(method: str) -> Tolerance:
    """How far an artifact made by `method` may drift from what training recorded."""
    return TOLERANCES[_PRECISIONS.get(method, "bf16")]
