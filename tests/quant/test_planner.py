"""`decant quantize --for ENGINE`: candidates in order, refusals with their reasons, and one artifact."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from decant.arguments import parse
from decant.artifact import verify_files
from decant.config import load_config
from decant.errors import ConfigError, QuantizeError
from decant_quant.loss_check import judge_heldout, judge_task
from decant_quant.memory_watch import MemoryWatch, refuse_small_memory
from decant_quant.quantize import run
from decant_quant.quantize_config import QuantizeConfig, parse_bytes, parse_loss
from decant_quant.task_check import Answered

ROW = "The kettle sings at 7, and at 7:45 the whole street knows that breakfast is over. "


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": ROW[i:] + str(i)}) + "\n" for i in range(24)))
    return path


def plan(model: Path, engine: str, rows: Path | None = None, **options: Any) -> QuantizeConfig:
    calibration = {"dataset": rows, "rows": 12, "heldout_rows": 8} if rows else {}
    values = {"model": model, "output": model.parent / "made", "for": engine, "calibration": calibration}
    return load_config(QuantizeConfig, values={**values, **options})


def tried(model: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((model.parent / "made.plan" / "plan.json").read_text())
    return {item["name"]: item for item in report["tried"]}


def test_it_falls_back_to_more_bits_and_says_why(
    model_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(plan(model_folder, "vllm", rows, max_loss="0.0001nats", fit="4GB"))
    found = tried(model_folder)
    assert list(found) == ["w8a8", "fp8", "gptq, 8 bits", "gptq, 4 bits", "hf:F16"]
    assert [item["status"] for item in found.values()] == [*["refused"] * 4, "taken"]
    assert {found[name]["step"] for name in ("w8a8", "fp8", "gptq, 8 bits")} == {"engine"}
    assert found["gptq, 4 bits"]["step"] == "loss"
    assert "more than 0.0001nats" in found["gptq, 4 bits"]["reason"]
    assert found["gptq, 4 bits"]["measured"]["heldout"]["kl_mean"] > 0.0001
    assert verify_files(model_folder.parent / "made").method == "hf:F16"
    assert "hf:F16" in capsys.readouterr().out
    page = (model_folder.parent / "made.plan" / "plan.html").read_text()
    assert "gptq, 4 bits" in page
    assert not (model_folder.parent / "made.plan" / "candidate").exists()


def test_the_cheapest_that_will_do_is_taken_and_the_rest_is_not_tried(model_folder: Path, rows: Path) -> None:
    run(plan(model_folder, "vllm", rows, max_loss="10nats"))
    found = tried(model_folder)
    assert found["gptq, 4 bits"]["status"] == "taken"
    assert found["hf:F16"]["status"] == "not tried"
    manifest = verify_files(model_folder.parent / "made")
    # 64 inputs: the default group of 128 does not divide them, and nobody asked for it.
    assert manifest.recipe["gptq"]["group_size"] == 64
    assert manifest.name == "made"


def test_what_does_not_fit_is_refused_before_any_work(model_folder: Path) -> None:
    with pytest.raises(
        QuantizeError, match=r"gguf:Q4_0, .* in memory: refused, weights .* do not fit in 50MB"
    ):
        run(plan(model_folder, "llamacpp", fit="50MB"))
    assert not (model_folder.parent / "made").exists()
    assert {item["step"] for item in tried(model_folder).values()} == {"memory"}


def test_memory_grows_with_context_and_requests(model_folder: Path) -> None:
    caches: list[int] = []
    for load in ({"concurrency": 1}, {"concurrency": 8}, {"concurrency": 8, "context": 256}):
        with pytest.raises(QuantizeError):
            run(plan(model_folder, "llamacpp", fit="1MB", load=load))
        caches.append(tried(model_folder)["gguf:F16"]["footprint"]["cache"])
    # 2 (keys, values) x 2 layers x 2 heads x 16 channels x 2 bytes x 512 tokens
    assert caches == [2 * 2 * 2 * 16 * 2 * 512, 8 * 2 * 2 * 2 * 16 * 2 * 512, 4 * 2 * 2 * 2 * 16 * 2 * 512]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fit": "8"}, "a size is a number with its unit"),
        ({"max_loss": "1%"}, "a loss is a number with its unit"),
        ({"for": "llamacpp", "engine_python": "python"}, "--for says another engine"),
        ({"for": "tgi"}, "for"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(tmp_path, "vllm", **options)


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("vllm", {"method": "w8a8"}, "vLLM's CPU build has no kernel for W8A8"),
        ("vllm", {"method": "gptq", "gptq": {"bits": 3}}, "codes of 4 bits only"),
        ("vllm", {"method": "gptq", "gptq": {"sym": False}}, "write it with --layout awq"),
        ("vllm", {"method": "gguf:Q8_0"}, "vllm does not load what gguf:Q8_0 writes"),
        ("llamacpp", {"method": "awq"}, "llamacpp does not load what awq writes"),
    ],
)
def test_a_method_that_the_engine_does_not_load_is_refused_before_any_work(
    model_folder: Path, rows: Path, engine: str, options: Any, said: str
) -> None:
    with pytest.raises(QuantizeError, match=said):
        run(plan(model_folder, engine, rows, **options))
    assert not (model_folder.parent / "made").exists()


def test_a_method_named_beside_the_engine_is_the_only_one_tried(model_folder: Path, rows: Path) -> None:
    run(plan(model_folder, "vllm", rows, method="awq", awq={"group_size": 32}, layout="compressed-tensors"))
    assert list(tried(model_folder)) == ["awq"]
    assert verify_files(model_folder.parent / "made").method == "awq"


def test_the_flags_are_named_as_the_words_are() -> None:
    given = ["runs/merged", "--output", "out", "--for", "vllm", "--fit", "8GB", "--max-loss", "1pt"]
    config: QuantizeConfig = parse(QuantizeConfig, given, verb="quantize", summary="")
    assert (config.for_, config.fit, config.max_loss) == ("vllm", "8GB", "1pt")
    again = load_config(QuantizeConfig, values=config.model_dump(mode="json", exclude_unset=True))
    assert again == config


def test_a_limit_without_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the engine with --for"):
        load_config(QuantizeConfig, values={"model": tmp_path, "output": tmp_path / "o", "fit": "8GB"})


def test_a_loss_cannot_be_bounded_without_rows(model_folder: Path) -> None:
    with pytest.raises(QuantizeError, match=r"evaluation\.data=FILE"):
        run(plan(model_folder, "llamacpp", max_loss="1pt"))


def test_sizes_and_losses_are_read_with_their_units() -> None:
    assert [parse_bytes(text) for text in ("8GB", "1.5GiB", "500 mb")] == [8 * 10**9, 3 * 2**29, 5 * 10**8]
    assert (parse_loss("1pt"), parse_loss("0.01nats")) == ((1.0, "pt"), (0.01, "nats"))


def answers(right: int, n: int) -> Answered:
    return Answered({str(i): i < right for i in range(n)}, None, {})


def test_a_loss_counts_as_bounded_only_if_the_whole_interval_is_inside() -> None:
    many, few = (
        judge_task(answers(900, 1000), answers(899, 1000), "1pt"),
        judge_task(answers(90, 100), answers(90, 100), "1pt"),
    )
    assert many.accepted
    assert (few.accepted, "more rows may show it" in few.reason) == (False, True)
    worse = judge_task(answers(900, 1000), answers(850, 1000), "1pt")
    assert (worse.accepted, worse.numbers["lost"], "more than 1pt" in worse.reason) == (False, 50, True)


def test_points_without_evaluation_rows_are_of_agreement_and_it_says_so() -> None:
    quality = {"top1_agreement": 0.995, "top1_agreement_low": 0.985, "tokens": 900}
    assert judge_heldout(quality, "2pt").accepted
    verdict = judge_heldout(quality, "1pt")
    assert not verdict.accepted
    assert "points are of agreement" in verdict.reason


def test_a_model_that_no_free_memory_holds_is_refused_before_any_work(
    tmp_path: Path, model_folder: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemFree: 1 kB\nMemAvailable:       100 kB\n")
    with pytest.raises(QuantizeError, match=r"at least 0\.2 MB of memory and 0\.1 MB are free"):
        refuse_small_memory(model_folder, measures=False, meminfo=meminfo)
    meminfo.write_text("MemAvailable:       250 kB\n")
    refuse_small_memory(model_folder, measures=False, meminfo=meminfo)
    with pytest.raises(QuantizeError, match="take a machine with more"):
        refuse_small_memory(model_folder, measures=True, meminfo=meminfo)


def test_the_memory_of_a_grandchild_is_seen() -> None:
    hold = "import time; held = bytearray(80_000_000); print('held', flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    child = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with MemoryWatch(child.pid) as memory:
        give_up_at = time.monotonic() + 30
        while (memory.peak_bytes or 0) < 80_000_000 and time.monotonic() < give_up_at:
            time.sleep(0.05)
    grandchildren = (
        (Path("/proc") / str(child.pid) / "task" / str(child.pid) / "children").read_text().split()
    )
    for process in [*map(int, grandchildren), child.pid]:
        subprocess.run(["kill", str(process)], check=False)
    child.communicate()
    assert (memory.peak_bytes or 0) >= 80_000_000
