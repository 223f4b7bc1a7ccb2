"""Two processes that train together: the loss, the weights and the files of one."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

import torch
from safetensors.torch import load_file

import decant_distill.train
from decant.artifact import read_manifest
from decant.errors import TrainingError
from decant_distill.train.command import run
from decant_distill.train.config import TrainConfig
from decant_distill.train.ranks import Ranks

CONFIGS = Path(decant_distill.train.__file__).parent / "accelerate"


def test_a_process_knows_its_place_from_its_environment() -> None:
    given = {"RANK": "1", "WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"}
    assert Ranks.from_environment(given) == Ranks(rank=1, world=4, sharded=True)
    assert Ranks.from_environment({}) == Ranks()


def test_ways_to_divide_a_model_that_are_not_taken_are_refused_by_name() -> None:
    with pytest.raises(TrainingError, match="tensor parallel training"):
        Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "2", "PARALLELISM_CONFIG_TP_SIZE": "2"})


def test_weights_that_accelerate_would_not_spread_are_no_silent_ddp(
    student_base: Path, curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to spread weights over")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="over GPUs only"):
        run(config(student_base, curated, tmp_path / "s"))


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_the_shipped_configs_are_ones_that_accelerate_reads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found: Any = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert found.num_processes == 2


def config(base: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "learning_rate": 3e-3,
        "batch_tokens": 512,
        "token_budget": 3000,
        "method": "lora",
        "compute_dtype": "float32",
        "golden_rows": 1,
        "golden_tokens": 4,
        "save_every_steps": 4,
        "dev_share": 0.2,
        "eval_every_steps": 4,
        "threads": 1,
    }
    return TrainConfig(base=base, data=data, output=output, **{**settings, **changes})


def by_two(arguments: list[str], *, shipped: str | None = None) -> None:
    """Runs a module or script in two processes that find each other over gloo."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if shipped is not None:
        config_file = str(CONFIGS / f"{shipped}.yaml")
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *arguments], env=environment, check=True)


def curve(folder: Path) -> list[float]:
    return [point["loss"] for point in (read_manifest(folder).training or {})["loss_curve"]]


@pytest.mark.timeout(240)
def test_two_processes_learn_what_one_learns_and_one_of_them_writes(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    run(config(student_base, curated, tmp_path / "one"))
    two = config(student_base, curated, tmp_path / "two")
    (tmp_path / "train.json").write_text(two.model_dump_json())
    by_two(["-m", "decant", "train", "--config", str(tmp_path / "train.json")], shipped="ddp")
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)
    left, right = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[name], right[name], atol=1e-4) for name in left)
    assert (read_manifest(tmp_path / "two").training or {})["processes"] == 2
    lines = (tmp_path / "two" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("started") == 1


# accelerate starts no FSDP on a CPU, so that torch's own sharding stands in for it here.
SHARDED = """
import json, sys
from pathlib import Path
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from decant_distill.train.config import TrainConfig
from decant_distill.train.course import plan_course
from decant_distill.train.objective import Objective, RankBatches
from decant_distill.train.ranks import Ranks
from decant_distill.train.student import build_student, load_tokenizer
from decant_distill.train.weights import learned_weights

config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
ranks = Ranks.from_environment()
if ranks.world > 1:
    distributed.init_process_group("gloo")
course = plan_course(config, load_tokenizer(config.base))
model = build_student(config).train()
if ranks.world > 1:
    mesh = distributed.init_device_mesh("cpu", (ranks.world,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
objective = Objective()
batches = RankBatches(course.examples, course.plan(), objective, ranks)
losses = []
for number in range(4):
    batch = batches[number]
    labels = batch.pop("labels")
    logits = model(**batch).logits
    loss = ranks.share(objective.loss(logits, labels), logits, mass=objective.mass(labels))
    losses.append(ranks.total(loss.item()) / ranks.world)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
weights = learned_weights(model)
if ranks.writes:
    sizes = {name: weight.double().norm().item() for name, weight in weights.items()}
    Path(sys.argv[2]).write_text(json.dumps({"losses": losses, "weights": sizes}))
if ranks.world > 1:
    distributed.destroy_process_group()
"""


@pytest.mark.timeout(240)
def test_weights_spread_over_two_processes_learn_what_they_learn_in_one(
    student_base: Path, curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, file = tmp_path / "sharded.py", tmp_path / "train.json"
    script.write_text(SHARDED)
    file.write_text(config(student_base, curated, tmp_path / "s").model_dump_json())
    by_two([str(script), str(file), str(tmp_path / "two.json")])
    monkeypatch.setattr(sys, "argv", ["sharded", str(file), str(tmp_path / "one.json")])
    runpy.run_path(str(script))
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-5)
