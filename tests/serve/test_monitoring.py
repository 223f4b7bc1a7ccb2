"""What stands in deploy/ asks the gateway only for what it has."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.timeout(240)

_METRIC = re.compile(r"\bdecant_[a-z0-9_]+\b")


@pytest.fixture(scope="module")
def deploy(repository: Path) -> Path:
    """The folder of what people deploy with."""
    return repository / "deploy"


@pytest.fixture(scope="module")
def exported(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path]
) -> tuple[set[str], set[str]]:
    """The names of a running gateway's samples, and of their labels."""
    with serve_for_session(write_script({"chunks": ["a", "b"], "prompt_tokens": 3})) as server:
        server.chat("hi", stream=True)
        text = server.http.get("/metrics").text
    return set(_METRIC.findall(text)), set(re.findall(r'(\w+)="', text))


def alerts(deploy: Path) -> list[str]:
    groups = yaml.safe_load((deploy / "monitoring/alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def panels(deploy: Path) -> list[str]:
    dashboard = json.loads((deploy / "monitoring/grafana/dashboards/decant.json").read_text())
    variables = [variable["query"] for variable in dashboard["templating"]["list"]]
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + variables


@pytest.mark.parametrize("queries", [alerts, panels])
def test_a_query_names_only_what_the_gateway_exports(
    queries: Callable[[Path], list[str]], deploy: Path, exported: tuple[set[str], set[str]]
) -> None:
    names, labels = exported
    asked = queries(deploy)
    assert len(asked) > 5
    assert {name for query in asked for name in _METRIC.findall(query)} <= names
    grouped = {
        label for query in asked for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")
    }
    assert grouped <= labels | {"le", "instance"}


def test_prometheus_takes_the_rules(deploy: Path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", "rules", "alerts.yml"],
        cwd=deploy / "monitoring",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_mounts_files_that_exist(deploy: Path) -> None:
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(sources) == 4
    assert all((deploy / source).exists() for source in sources)


def test_a_restarting_engine_is_not_ready_but_alive(deploy: Path) -> None:
    documents = list(yaml.safe_load_all((deploy / "kubernetes/decant.yaml").read_text()))
    (container,) = documents[1]["spec"]["template"]["spec"]["containers"]
    probes = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
