import csv
import json
from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.errors import ConfigError
from decant_bench.sweep import Found, Outcome, SweepConfig, run, search
from tests.bench.scripted_endpoint import Reply, serving


class Server:
    """Meets the objectives up to `capacity`; the client can offer up to `client_limit`."""

    def __init__(self, capacity: float, client_limit: float = 1e9) -> None:
        self.capacity, self.client_limit = capacity, client_limit
        self.tried: list[float] = []

    async def probe(self, rate: float) -> Outcome:
        self.tried.append(rate)
        if rate > self.client_limit:
            return "invalid"
        return "meets" if rate <= self.capacity else "misses"


@pytest.mark.parametrize("start", [1.0, 37.0, 1000.0])
async def test_the_highest_rate_is_found_from_below_and_from_above(start: float) -> None:
    server = Server(capacity=40.0)
    found = await search(server.probe, start=start, tolerance=0.05, steps=30)

    assert found.limit == "server"
    assert found.rate is not None
    assert 40 / 1.05 <= found.rate <= 40


async def test_a_client_that_is_too_slow_is_named_as_the_limit() -> None:
    found = await search(Server(capacity=1e6, client_limit=100.0).probe, start=50.0, tolerance=0.1, steps=30)

    assert found.limit == "client"
    assert found.rate is not None
    assert found.rate <= 100


async def test_the_search_ends_with_its_steps() -> None:
    server = Server(capacity=1e9)
    assert await search(server.probe, start=1.0, tolerance=0.1, steps=4) == Found(8.0, "steps")
    assert server.tried == [1.0, 2.0, 4.0, 8.0]
    assert (await search(Server(capacity=0.0).probe, start=1.0, tolerance=0.1, steps=3)).rate is None


def configure(folder: Path, endpoint: dict[str, Any], **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "output": folder / "sweep",
        "endpoint": endpoint,
        "workload": {"prompt_tokens": {"mean": 12}},
        "slo": {"e2e_s": 0.8},
        "attainment": 0.85,
        "arrival": "constant",
        "rate": 10.0,
        "duration_s": 1.0,
        "tolerance": 1.0,
        "warmup": 0,
        "error_share": 1e6,
    }
    return load_config(SweepConfig, values=values | changes)


def test_a_sweep_finds_where_a_server_of_two_slots_falls_behind(tmp_path: Path) -> None:
    # Two slots of 0.1 s are 20 requests per second: of 40 due in one second, 8 are later than 0.8 s.
    with serving(lambda _: Reply(e2e_s=0.1), slots=2) as server:
        run(configure(tmp_path, server.config, steps=4))
    document = json.loads((tmp_path / "sweep/sweep.json").read_text(encoding="utf-8"))
    with (tmp_path / "sweep/sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    assert document["rate"] in (10.0, 20.0)
    assert document["limit"] == "server"
    assert [float(row["rate"]) for row in rows] == sorted(float(row["rate"]) for row in rows)
    assert rows[-1]["outcome"] == "misses"
    assert "<svg" in (tmp_path / "sweep/report.html").read_text(encoding="utf-8")
    assert (tmp_path / "sweep/step-00/result.json").is_file()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"slo": {}}, "a sweep needs an objective"),
        ({"arrival": "closed", "rate": None, "requests": 5}, "arrival closed has no single rate"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        configure(tmp_path, {"base_url": "http://127.0.0.1:9/v1", "model": "m"}, **changes)
