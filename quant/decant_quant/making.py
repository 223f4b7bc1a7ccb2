"""Making one artifact: written aside, tried in its engine, and only then put in place."""

import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from decant.artifact import Manifest, has_manifest, read_manifest, verify_files, write_manifest
from decant.errors import QuantizeError
from decant.files import folder_aside
from decant.golden import GoldenReport
from decant.processes import end_with_parent
from decant_quant.checkpoint import read_json
from decant_quant.engine_formats import refusal
from decant_quant.memory_watch import refuse_small_memory
from decant_quant.method import METHODS, Prepared, Written, build_method
from decant_quant.options import Options
from decant_quant.quality_page import record_speed
from decant_quant.quantize_config import QuantizeConfig
from decant_quant.speed import Speed, measure_speed

STAGE = "quantized"
_CHECK_LIMIT_S = 1800.0
# Golden prompts are short; a longer context would only take memory for its cache.
_CHECK_TOKENS = 2048
# A model below this gains nothing from a second thread; the engine's threads spin, to a busy machine's cost.
_SMALL_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact in its place: what the method wrote, its manifest, and how its golden prompts went."""

    written: Written
    manifest: Manifest
    golden: GoldenReport | None
    wall_s: float


def make_artifact(config: QuantizeConfig, prepared: Prepared | None = None) -> Made:
    """Makes `config.output`; QuantizeError or ParityError, and nothing left behind, when it cannot be."""
    refuse_output(config)
    started = time.perf_counter()
    parent = verify_files(config.model) if has_manifest(config.model) else None
    prepared = prepared or prepare(config)
    _refuse_full_disk(config.output, prepared)
    refuse_small_memory(config.model, measures=config.calibration.measures)
    try:
        written, manifest, report = _make(config, prepared, parent)
    except OSError as error:
        raise QuantizeError(
            f"{config.output}: could not be written ({error}), it needs {megabytes(prepared.size_bytes)};"
            f" no artifact was left behind: make room or name another output folder"
        ) from error
    prepared.done()
    return Made(written, manifest, report, time.perf_counter() - started)


def prepare(config: QuantizeConfig) -> Prepared:
    """Reads and checks the model for the config's method; QuantizeError for what it cannot convert, or what
    the engine that is to check it does not load.
    """
    reason = refusal("vllm", config) if config.engine_python is not None else None
    if reason is not None:
        raise QuantizeError(f"{reason}: choose another method, or leave --engine-python out")
    return build_method(config.method, _options(config)).prepare(config.model)


def _options(config: QuantizeConfig) -> Options:
    output = config.output.absolute()
    return Options(
        gptq=config.gptq,
        awq=config.awq,
        w8a8=config.w8a8,
        layout=config.layout,
        gguf=config.gguf,
        calibration=config.calibration,
        progress_folder=output.parent / f".{output.name}.layers",
        recovery=config.recovery if config.recover else None,
        python=config.python,
        compare_tokens=True,
    )


def _make(
    config: QuantizeConfig, prepared: Prepared, parent: Manifest | None
) -> tuple[Written, Manifest, GoldenReport | None]:
    with folder_aside(config.output) as aside:
        written = prepared.write(aside)
        manifest = _sign(config, aside, written, parent)
        threads = 1 if manifest.size_bytes < _SMALL_BYTES else None
        report = written.golden
        if report is None or config.engine_python is not None:
            report = check_served(aside, threads=threads, vllm_python=config.engine_python)
        if config.speed:
            speed = _timed(config, aside, threads=threads)
            record_speed(aside, asdict(speed), method=config.method)
            found = {**written.measurements, "speed": asdict(speed)}
            written = replace(written, notes=(*written.notes, speed.sentence()), measurements=found)
            manifest = _sign(config, aside, written, parent)
    return written, manifest, report


def _timed(config: QuantizeConfig, folder: Path, *, threads: int | None) -> Speed:
    engine = config.timing.engine if config.for_ is None else config.for_
    timing = config.timing.with_changes(engine=engine)
    python = config.engine_python if engine == "vllm" else None
    return measure_speed(folder, timing, threads=threads, engine_python=python)


def _sign(config: QuantizeConfig, folder: Path, written: Written, parent: Manifest | None) -> Manifest:
    return write_manifest(
        folder,
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


def check_served(
    folder: Path, *, threads: int | None, vllm_python: Path | None = None
) -> GoldenReport | None:
    """Loads the artifact in its engine (vLLM, where its interpreter is given), in a child process, and
    re-runs its golden prompts, if it has any.

    ParityError when it answers otherwise than its parent, QuantizeError when it cannot be tried.
    """
    command = [sys.executable, "-m", "decant", "serve", str(folder), "--check-only"]
    command += [] if threads is None else ["--threads", str(threads)]
    if vllm_python is not None:
        positions = int(read_json(folder / "config.json").get("max_position_embeddings", _CHECK_TOKENS))
        command += ["--engine", "vllm", "--engine-python", str(vllm_python)]
        command += ["--context", str(min(positions, _CHECK_TOKENS))]
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


def refuse_output(config: QuantizeConfig) -> None:
    """QuantizeError for an output folder that holds something else."""
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
            f"{output}: needs {megabytes(prepared.size_bytes)} and {place} has {megabytes(free)} free;"
            f" make room or name another output folder"
        )


def megabytes(size_bytes: float) -> str:
    """The size in words."""
    return f"{size_bytes / 1e6:.1f} MB"
