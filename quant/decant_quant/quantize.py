"""`decant quantize`: a model folder in, a smaller artifact of the same model out, tried before it counts."""

from decant_quant.making import Made, make_artifact, megabytes
from decant_quant.planner import run_plan
from decant_quant.quantize_config import QuantizeConfig

CONFIG = QuantizeConfig


def run(config: QuantizeConfig) -> None:
    """Makes the artifact with the method named, or with the cheapest that a target allows."""
    if config.for_ is not None:
        for line in run_plan(config, say=lambda text: print(text, flush=True)):
            print(line)
        return
    made = make_artifact(config)
    for note in made.written.notes:
        print(f"note: {note}")
    print(_summary(config, made))


def _summary(config: QuantizeConfig, made: Made) -> str:
    written, manifest, report = made.written, made.manifest, made.golden
    types = ", ".join(f"{count} {name}" for name, count in written.measurements["tensor_types"].items())
    first = f"{config.output}: {config.method}, {megabytes(manifest.size_bytes)} (tensors: {types})"
    if report is None or report.checked == 0:
        loads = "loads in its engine" if written.golden is None else "reads back from its files"
        return f"{first}\n{loads}; the model came without golden prompts to compare its answers with"
    return (
        f"{first}\ngolden prompts: {report.checked} reproduced, {report.flips} of them with another token at"
        f" a near tie, mean log-probability gap {report.mean_logprob_gap:.4f} nats"
    )
