"""OpenTelemetry spans, as a collector on loopback receives them."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed: pip install 'decant[otel]'")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

pytestmark = pytest.mark.timeout(240)

ANSWER = {"chunks": ["a", "b", "c"], "ttft_s": 0.05, "gaps_s": [0.02], "prompt_tokens": 7}
CLIENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "shop=1"}


class Collector:
    """Takes spans over OTLP/HTTP and keeps them."""

    def __init__(self) -> None:
        spans: list[Any] = []
        self.spans = spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                assert self.path == "/v1/traces"
                for resource in request.resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Says nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever)
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    values = {item.key: item.value for item in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def test_a_request_is_a_span_with_its_stages_below_the_clients_own(
    serve: Callable[..., Any], write_script: Callable[..., Path], collector: Collector
) -> None:
    with serve(write_script(ANSWER), "--otlp", collector.url) as server:
        server.http.headers.update(CLIENT)
        answer = server.chat("a secret question", stream=True, max_tokens=3)
        request_id = answer.headers["x-request-id"]
        server.chat("hi", temperature="warm")
        server.terminate()
    good, bad = collector.named(f"chat {server.model}")
    assert good.trace_id.hex() == CLIENT["traceparent"].split("-")[1]
    assert good.parent_span_id.hex() == CLIENT["traceparent"].split("-")[2]
    said = attributes(good)
    assert said["decant.request_id"] == request_id
    assert (said["gen_ai.operation.name"], said["gen_ai.request.max_tokens"]) == ("chat", 3)
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 3)
    assert (attributes(bad)["http.response.status_code"], bad.status.code) == (400, 0)
    (decode,) = collector.named("decode")
    assert decode.parent_span_id == good.span_id
    assert decode.end_time_unix_nano - decode.start_time_unix_nano == pytest.approx(0.04e9)
    assert {"read", "queue", "engine", "prefill"} <= {span.name for span in collector.spans}
    assert "secret" not in str(collector.spans)


def test_a_trace_goes_on_into_the_engine(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path], collector: Collector
) -> None:
    with serve_for_session(write_script(ANSWER), "--otlp", collector.url) as remote:
        options = ("--base-url", remote.base_url, "--model-name", remote.model)
        with serve_for_session(*options, "--otlp", collector.url) as server:
            assert server.chat("hi").status_code == 200
            server.terminate()
        # Without a collector of its own a gateway still hands the client's context on.
        with serve_for_session(*options) as untraced:
            untraced.http.headers.update(CLIENT)
            assert untraced.chat("hi").status_code == 200
        remote.terminate()
    spans = collector.named(f"chat {remote.model}")
    by_id = {span.span_id: span for span in spans}
    (inner,) = [span for span in spans if span.parent_span_id in by_id]
    assert inner.trace_id == by_id[inner.parent_span_id].trace_id
    assert CLIENT["traceparent"].split("-")[1] in [span.trace_id.hex() for span in spans]


def test_a_collector_that_is_not_there_disturbs_nobody(
    serve: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    with serve(write_script(ANSWER), "--otlp", "http://127.0.0.1:9") as server:
        assert server.chat("hi").status_code == 200
        assert server.terminate() == 0


def test_an_address_that_is_none_is_refused(
    run_decant: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    done = run_decant("serve", write_script(ANSWER), "--port", "0", "--otlp", "collector:4318")
    assert done.returncode == 2
    assert "no address of a collector" in done.stderr
