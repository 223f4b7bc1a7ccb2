"""`decant quantize`: a model folder in, a smaller artifact of the same model out, tried before it counts."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from pydantic import Field, ValidationError, field_validator

from decant.artifact import Manifest, has_manifest, read_manifest, verify_files, write_manifest
from decant.config import Config, InputPath, OutputPath
from decant.errors import QuantizeError
from decant.files import folder_aside
from decant.golden import GoldenReport
from decant.processes import end_with_parent
from decant_quant.method import METHODS, Prepared, Written, build_method, check_name
from decant_quant.options import CalibrationConfig, GptqConfig, Options

STAGE = "quantized"
_CHECK_LIMIT_S = 1800.0
# A model below this gains nothing from a second thread; the engine's threads spin, to a busy machine's cost.
_SMALL_BYTES = 64_000_000


class QuantizeConfig(Config):
    """What to quantize, how, and where to."""

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: InputPath = Field(description="Hugging Face model folder (config.json, safetensors, tokenizer)")
    output: OutputPath = Field(description="artifact folder to write; an older one of ours is replaced")
    method: str = Field(
        default="gguf:Q8_0",
        description="gguf:F32, BF16, F16, Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0; gptq; hf:F16 or BF16;"
        " dequantize:F32, F16 or BF16 (a gptq folder back to plain weights)",
    )
    gptq: GptqConfig = Field(default=GptqConfig(), description="the grid of the gptq method")
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(),
        description="the rows to calibrate on (gptq), and to measure on (all that quantize)",
    )

    @field_validator("method")
    @classmethod
    def _is_known(cls, value: str) -> str:
        return check_name(value)


CONFIG = QuantizeConfig


def run(config: QuantizeConfig) -> None:
    """Writes the artifact aside, lets `decant serve --check-only` try it, and only then puts it in place."""
    _refuse_output(config)
    parent = verify_files(config.model) if has_manifest(config.model) else None
    prepared = build_method(config.method, _options(config)).prepare(config.model)
    _refuse_full_disk(config.output, prepared)
    try:
        written, manifest, report = _make(config, prepared, parent)
    except OSError as error:
        raise QuantizeError(
            f"{config.output}: could not be written ({error}), it needs {_megabytes(prepared.size_bytes)};"
            f" no artifact was left behind: make room or name another output folder"
        ) from error
    prepared.done()
    for note in written.notes:
        print(f"note: {note}")
    print(_summary(config, written, manifest, report))


def _options(config: QuantizeConfig) -> Options:
    output = config.output.absolute()
    return Options(
        gptq=config.gptq,
        calibration=config.calibration,
        progress_folder=output.parent / f".{output.name}.layers",
    )


def _make(
    config: QuantizeConfig, prepared: Prepared, parent: Manifest | None
) -> tuple[Written, Manifest, GoldenReport | None]:
    with folder_aside(config.output) as aside:
        written = prepared.write(aside)
        manifest = write_manifest(
            aside,
            name=config.output.absolute().name,
            kind=written.kind,
            method=config.method,
            parent=config.model.absolute(),
            golden=parent.golden if parent else None,
            details={
                "recipe": config.model_dump(mode="json"),
                "measurements": {**written.measurements, "notes": list(written.notes)},
            },
        )
        threads = 1 if manifest.size_bytes < _SMALL_BYTES else None
        report = written.golden or check_served(aside, threads=threads)
    return written, manifest, report


def check_served(folder: Path, *, threads: int | None) -> GoldenReport | None:
    """Loads the artifact in its engine, in a child process, and re-runs its golden prompts, if it has any.

    ParityError when it answers otherwise than its parent, QuantizeError when it cannot be tried.
    """
    command = [sys.executable, "-m", "decant", "serve", str(folder), "--check-only"]
    command += [] if threads is None else ["--threads", str(threads)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_CHECK_LIMIT_S,
            check=False,
            preexec_fn=end_with_parent(),
        )
    except subprocess.TimeoutExpired:
        raise QuantizeError(f"`decant serve --check-only` gave no answer in {_CHECK_LIMIT_S:.0f} s") from None
    printed = done.stdout.strip().splitlines()
    report = _parse_report(printed[-1]) if printed else None
    if report is not None:
        report.raise_if_broken()
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise QuantizeError(
            f"the new file could not be tried in its engine: {said[-1].removeprefix('decant: ')}"
        )
    return report


def _parse_report(line: str) -> GoldenReport | None:
    """The child's report, its breaks under the name of the stage that made the file."""
    try:
        report = GoldenReport.model_validate_json(line)
    except ValidationError:
        return None
    breaks = tuple(found.model_copy(update={"stage": STAGE}) for found in report.breaks)
    return report.model_copy(update={"stage": STAGE, "breaks": breaks})


def _refuse_output(config: QuantizeConfig) -> None:
    output, model = config.output.resolve(), config.model.resolve()
    if output == model or output in model.parents:
        raise QuantizeError(
            f"{config.output}: is the model that is to be quantized; name another output folder"
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or not has_manifest(output) or read_manifest(output).method not in METHODS:
        raise QuantizeError(
            f"{config.output}: is not empty and not an artifact of quantize; name another output folder"
        )


def _refuse_full_disk(output: Path, prepared: Prepared) -> None:
    place = next(folder for folder in output.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if prepared.size_bytes > free:
        raise QuantizeError(
            f"{output}: needs {_megabytes(prepared.size_bytes)} and {place} has {_megabytes(free)} free;"
            f" make room or name another output folder"
        )


def _summary(
    config: QuantizeConfig, written: Written, manifest: Manifest, report: GoldenReport | None
) -> str:
    types = ", ".join(f"{count} {name}" for name, count in written.measurements["tensor_types"].items())
    first = f"{config.output}: {config.method}, {_megabytes(manifest.size_bytes)} (tensors: {types})"
    if report is None or report.checked == 0:
        loads = "loads in its engine" if written.golden is None else "reads back from its files"
        return f"{first}\n{loads}; the model came without golden prompts to compare its answers with"
    return (
        f"{first}\ngolden prompts: {report.checked} reproduced, {report.flips} of them with another token at"
        f" a near tie, mean log-probability gap {report.mean_logprob_gap:.4f} nats"
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
