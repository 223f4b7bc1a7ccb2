"""Spans of each request for OpenTelemetry, under the semantic conventions for generative AI.

One server span per request, with the stages of its breakdown as children; texts are never in them.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from decant import __version__
from decant.errors import ConfigError, MissingExtraError
from decant_serve.timing_log import TimingRecord

_CONTEXT_HEADERS = ("traceparent", "tracestate")
_TRACES_PATH = "/v1/traces"
_STOP_LIMIT_S = 5.0

_OPERATIONS: Mapping[str, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
}
# Our parameters, and what the conventions call them.
_ASKED: Mapping[str, str] = {
    "dimensions": "gen_ai.embeddings.dimension.count",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "stream": "gen_ai.request.stream",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
}


class Trace(Protocol):
    """One request's place in a trace."""

    def headers(self) -> Mapping[str, str]:
        """What tells the engine of it."""
        ...

    def end(self, record: TimingRecord, asked: Mapping[str, Any]) -> None:
        """Writes the spans of a request that has ended."""
        ...


class Tracing(Protocol):
    """Where traces go."""

    def begin(self, headers: Headers) -> Trace:
        """The trace of a request that arrives, or its part in the client's."""
        ...

    async def stop(self) -> None:
        """Sends what is left."""
        ...


class Untraced:
    """No spans of our own; the client's context still reaches the engine."""

    def __init__(self, headers: Headers | None = None) -> None:
        self._headers = headers

    def begin(self, headers: Headers) -> Trace:
        """Remembers the context."""
        return Untraced(headers)

    def headers(self) -> Mapping[str, str]:
        """As they came."""
        given = self._headers
        return {} if given is None else {name: given[name] for name in _CONTEXT_HEADERS if name in given}

    def end(self, record: TimingRecord, asked: Mapping[str, Any]) -> None:
        """Nothing to write."""

    async def stop(self) -> None:
        """Nothing to send."""


def open_tracing(endpoint: str | None) -> Tracing:
    """Spans to an OTLP/HTTP collector such as http://127.0.0.1:4318, or none.

    ConfigError for what is no such address, MissingExtraError without OpenTelemetry's libraries.
    """
    if endpoint is None:
        return Untraced()
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"otlp: {endpoint} is no address of a collector, such as http://127.0.0.1:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtraError("opentelemetry-sdk", "otel") from None
    url = endpoint.rstrip("/").removesuffix(_TRACES_PATH) + _TRACES_PATH
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say wins.
    service = {"service.name": "decant", "service.version": __version__}
    provider = TracerProvider(resource=Resource(service).merge(Resource.create()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_STOP_LIMIT_S)))
    return OpenTelemetry(provider)


class OpenTelemetry:
    """Spans by OpenTelemetry's own SDK, which sends them from a thread of its own."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("decant_serve", __version__)

    def begin(self, headers: Headers) -> Trace:
        """A span below the client's, where the client sends a `traceparent`."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name: headers[name] for name in _CONTEXT_HEADERS if name in headers}
        parent = TraceContextTextMapPropagator().extract(carrier)
        return Spans(self._tracer, self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER))

    async def stop(self) -> None:
        """Sends what is left, for a few seconds at most."""
        await asyncio.to_thread(self._provider.shutdown)


class Spans:
    """A request's own span, and at its end those of its stages."""

    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    def headers(self) -> Mapping[str, str]:
        """The engine's spans come below ours."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier

    def end(self, record: TimingRecord, asked: Mapping[str, Any]) -> None:
        """A failure of the server marks the span as one; a refusal of the request does not."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        operation = _OPERATIONS[record.route]
        self._span.update_name(f"{operation} {record.model}" if record.model else operation)
        self._span.set_attributes({**_request_attributes(record, asked), **_answer_attributes(record)})
        timing = record.timing
        if timing.error_kind and (timing.status >= 500 or timing.status == 200):
            self._span.set_status(Status(StatusCode.ERROR, timing.error_kind))
        began_ns: int = self._span.start_time
        inside = set_span_in_context(self._span)
        for name, start_s, end_s in _stages(record):
            child = self._tracer.start_span(name, context=inside, start_time=began_ns + _ns(start_s))
            child.end(began_ns + _ns(end_s))
        self._span.end(began_ns + _ns(record.breakdown.total_s))


def _request_attributes(record: TimingRecord, asked: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATIONS[record.route],
        "gen_ai.provider.name": "decant",
        "http.request.method": "POST",
        "decant.request_id": record.timing.request_id,
    }
    if record.model:
        attributes |= {"gen_ai.request.model": record.model, "decant.engine": record.engine_name}
    for name, convention in _ASKED.items():
        value = asked.get(name)
        # A remote endpoint's parameters are its own affair, and may be anything.
        if isinstance(value, int | float) and abs(value) < 2**63:
            attributes[convention] = value
    return attributes


def _answer_attributes(record: TimingRecord) -> dict[str, Any]:
    timing = record.timing
    told = {
        "error.type": timing.error_kind,
        "gen_ai.response.finish_reasons": [timing.finish_reason] if timing.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": timing.ttft_s,
        "gen_ai.usage.cache_read.input_tokens": timing.cached_tokens,
        "gen_ai.usage.input_tokens": timing.prompt_tokens,
        "gen_ai.usage.output_tokens": timing.completion_tokens,
        "http.response.status_code": timing.status or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _stages(record: TimingRecord) -> Iterator[tuple[str, float, float]]:
    """Name, start and end in seconds from arrival; the engine's own stages lie at the start of its time."""
    parts = record.breakdown
    at_s = 0.0
    for name, length_s in (("read", parts.read_s), ("queue", parts.queue_s), ("engine", parts.engine_s)):
        if length_s is None:
            return
        yield name, at_s, at_s + length_s
        at_s += length_s
    at_s -= parts.engine_s or 0.0
    engine = (
        ("engine queue", parts.engine_queue_s),
        ("prefill", parts.prefill_s),
        ("decode", parts.decode_s),
    )
    for name, length_s in engine:
        if length_s is not None:
            yield name, at_s, at_s + length_s
            at_s += length_s


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
