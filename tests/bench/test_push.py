"""The numbers of a run at a Pushgateway."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from decant.errors import EndpointError
from decant_bench.push import metrics_text, push
from tests.bench.bench_runs import run_result


@contextmanager
def gateway(status: int = 200) -> Generator[tuple[str, dict[str, str]]]:
    """A server that takes what is put, and what it took by path."""
    taken: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            taken[self.path] = self.rfile.read(int(self.headers["content-length"])).decode()
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


def test_a_run_is_put_under_its_name() -> None:
    with gateway() as (url, taken):
        push(run_result("a b"), f"{url}/")
    [(path, text)] = taken.items()
    assert path == "/metrics/job/decant_bench/run/a%20b"
    assert "decant_bench_valid 1\n" in text
    assert 'decant_bench_requests{state="offered"} 100\n' in text


def test_percentiles_become_quantiles_and_what_is_withheld_is_left_out() -> None:
    p50, p99 = {"value": 0.25, "low": 0.2, "high": 0.3, "needs": 5}, {"value": None, "needs": 368}
    latency = {"ttft_response_s": {"n": 9, "mean": 0.3, "p50": p50, "p99": p99}}
    text = metrics_text(run_result("a").model_copy(update={"latency": latency}))
    assert 'decant_bench_latency_seconds{measure="ttft_response",quantile="0.5"} 0.25\n' in text
    assert "0.99" not in text


def test_a_gateway_that_refuses_or_is_down_is_an_error_that_names_it() -> None:
    with gateway(400) as (url, _), pytest.raises(EndpointError, match=f"{url}/metrics.*HTTP 400"):
        push(run_result("a"), url)
    with pytest.raises(EndpointError, match="check push_gateway"):
        push(run_result("a"), "http://127.0.0.1:9")
