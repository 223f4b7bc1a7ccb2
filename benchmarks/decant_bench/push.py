"""A run's numbers for Prometheus, by way of a Pushgateway: a run is over before anybody could scrape it."""

from collections.abc import Iterator
from urllib.parse import quote

import httpx

from decant.errors import EndpointError
from decant_bench.bench_result import BenchResult

_JOB = "decant_bench"
_LIMIT_S = 10.0


def push(result: BenchResult, gateway: str) -> None:
    """Replaces the numbers of runs of this name at the gateway; EndpointError when it does not take them."""
    url = f"{gateway.rstrip('/')}/metrics/job/{_JOB}/run/{quote(result.name, safe='')}"
    headers = {"content-type": "text/plain; version=0.0.4"}
    try:
        response = httpx.put(url, content=metrics_text(result).encode(), headers=headers, timeout=_LIMIT_S)
    except httpx.TransportError as error:
        raise EndpointError(f"{url}: {error}; check push_gateway (the result is written)") from None
    if not response.is_success:
        words = " ".join(response.text.split())[:200]
        raise EndpointError(f"{url}: HTTP {response.status_code}: {words} (the result is written)")


def metrics_text(result: BenchResult) -> str:
    """The run in Prometheus' text format; what was not measured is left out."""
    return "".join(f"{line}\n" for line in _lines(result))


def _lines(result: BenchResult) -> Iterator[str]:
    yield "# TYPE decant_bench_valid gauge"
    yield f"decant_bench_valid {int(result.valid)}"
    yield "# TYPE decant_bench_requests gauge"
    for what in ("offered", "completed", "failed"):
        yield f'decant_bench_requests{{state="{what}"}} {result.counts[what]}'
    for kind, found in result.errors.items():
        yield f'decant_bench_requests{{state="failed",kind="{kind}"}} {found["n"]}'
    yield "# TYPE decant_bench_latency_seconds gauge"
    for measure, found in result.latency.items():
        for name, percentile in found.items():
            if name.startswith("p") and percentile["value"] is not None:
                labels = f'measure="{measure.removesuffix("_s")}",quantile="{float(name[1:]) / 100:g}"'
                yield f"decant_bench_latency_seconds{{{labels}}} {percentile['value']}"
    for name, value in result.throughput.items():
        if name.endswith("_per_s") and value is not None:
            yield f"# TYPE decant_bench_{name}econd gauge"
            yield f"decant_bench_{name}econd {value}"
    if result.goodput is not None and result.goodput["share"] is not None:
        yield "# TYPE decant_bench_goodput_ratio gauge"
        yield f"decant_bench_goodput_ratio {result.goodput['share']}"
