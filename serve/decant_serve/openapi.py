"""The gateway's HTTP surface as an OpenAPI 3.1 document; bodies come from the models that check them."""

from collections.abc import Mapping
from typing import Any

from decant import __version__
from decant.wire import ChatRequest, CompletionRequest, ErrorBody
from decant_serve.calls import EMBEDDINGS_PATH, PATHS
from decant_serve.completions import TIMING_HEADER
from decant_serve.deadlines import TIMEOUT_HEADER
from decant_serve.embeddings import EmbeddingRequest
from decant_serve.recent import MOST as MOST_RECENT
from decant_serve.recent import PATH as RECENT_PATH
from decant_serve.responses_call import PATH as RESPONSES_PATH

_REFUSALS: Mapping[int, str] = {
    400: "The request is at fault; `param` names where.",
    401: "No API key, or an unknown one.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is over the limit.",
    415: "The body is said to be something else than JSON.",
    429: "The queue is full, or the key has used what it may for now.",
    431: "The headers are over the limit.",
    500: "The gateway or the engine failed.",
    502: "The engine's answer broke off.",
    503: "The engine is being restarted, or the server is being stopped.",
    504: "The time for the answer is over.",
}
_RESPONSES_REQUEST: Mapping[str, Any] = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string"},
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
        "reasoning": {"type": ["object", "null"]},
        "stream": {"type": "boolean"},
        "temperature": {"type": ["number", "null"], "minimum": 0},
        "text": {"type": ["object", "null"]},
        "tool_choice": {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    },
}


def openapi_document() -> dict[str, Any]:
    """The document; the same for every model, as what an engine honours is said by its refusals."""
    schemas: dict[str, Any] = {"ResponsesRequest": dict(_RESPONSES_REQUEST)}
    for model in (ChatRequest, CompletionRequest, EmbeddingRequest, ErrorBody):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": _reference("ErrorBody")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Decant", "version": __version__},
        "security": [{}, {"key": []}],
        "paths": {**_completions(), **_batches(), **_pages()},
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _completions() -> dict[str, Any]:
    described = {
        PATHS["chat"]: ("ChatRequest", "A chat completion, whole or streamed."),
        PATHS["completions"]: ("CompletionRequest", "A text completion, whole or streamed."),
        EMBEDDINGS_PATH: ("EmbeddingRequest", "A vector for each input."),
        RESPONSES_PATH: ("ResponsesRequest", "A response, whole or streamed; it is not stored."),
    }
    return {path: {"post": _completion(schema, summary)} for path, (schema, summary) in described.items()}


def _completion(schema: str, summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    faults = {str(status): _fault(about) for status, about in _REFUSALS.items()}
    return {
        "summary": summary,
        "parameters": [
            _header(TIMEOUT_HEADER, {"type": "number", "exclusiveMinimum": 0}),
            _header(TIMING_HEADER, {"type": "string", "enum": ["0", "1"]}),
            _header("X-Request-Id", {"type": "string"}),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(schema)}}},
        "responses": {"200": {"description": "The answer.", "content": content}, **faults},
    }


def _batches() -> dict[str, Any]:
    """The Files and Batches APIs: a server without `--batches` answers each with 404."""
    described: dict[str, tuple[str, str | None]] = {
        "post /v1/files": ("Takes a batch's input, as multipart/form-data.", None),
        "get /v1/files": ("The key's files.", None),
        "get /v1/files/{file_id}": ("One file's object.", "file_id"),
        "delete /v1/files/{file_id}": ("Removes one file.", "file_id"),
        "get /v1/files/{file_id}/content": ("One file's bytes.", "file_id"),
        "post /v1/batches": ("Starts a batch.", None),
        "get /v1/batches": ("The key's batches.", None),
        "get /v1/batches/{batch_id}": ("One batch as it stands.", "batch_id"),
        "post /v1/batches/{batch_id}/cancel": ("Asks no more of a batch's requests.", "batch_id"),
    }
    paths: dict[str, Any] = {}
    for place, (summary, variable) in described.items():
        method, path = place.split(" ")
        paths.setdefault(path, {})[method] = _page(summary, (400, 401, 404, 413), variable)
    return paths


def _pages() -> dict[str, Any]:
    described: dict[str, tuple[str, tuple[int, ...], str | None]] = {
        "/health": ("The gateway lives; what its engines do.", (), None),
        "/ready": ("Whether requests can come to every model.", (503,), None),
        "/metrics": ("Prometheus' text format.", (401,), None),
        "/openapi.json": ("This document.", (401,), None),
        "/v1/models": ("The models served.", (401,), None),
        "/v1/models/{model}": ("One model's page.", (401, 404), "model"),
        RECENT_PATH: ("Your requests in flight and the last ones that ended.", (400, 401), None),
        "/v1/requests/{request_id}/timing": ("One request's timing.", (401, 404), "request_id"),
    }
    pages = {path: {"get": _page(*about)} for path, about in described.items()}
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_RECENT}
    query = {"name": "limit", "in": "query", "required": False, "schema": limit}
    pages[RECENT_PATH]["get"]["parameters"].append(query)
    return pages


def _page(summary: str, faults: tuple[int, ...], variable: str | None) -> dict[str, Any]:
    path = {"name": variable, "in": "path", "required": True, "schema": {"type": "string"}}
    refused = {str(status): {"description": "Not now, not here, or not for this key."} for status in faults}
    return {
        "summary": summary,
        "parameters": [path] if variable else [],
        "responses": {"200": {"description": "The answer."}, **refused},
    }


def _fault(about: str) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": _reference("Error")}}}


def _header(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
