"""POST /v1/embeddings: what may be asked, and the vectors as the client wants them."""

import base64
import json
import math
import struct
from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from decant_serve.calls import EMBEDDINGS_PATH, Call, Features, refuse_invalid
from decant_serve.openai_errors import invalid_value, refusal
from decant_serve.token_estimate import prompt_tokens
from decant_serve.voices import PlainVoice

_MOST_INPUTS = 2048


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings; one text or list of token ids, or a list of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None

    @property
    def inputs(self) -> list[Any]:
        """What gets a vector each."""
        if isinstance(self.input, str) or (self.input and isinstance(self.input[0], int)):
            return [self.input]
        return list(self.input)


def read_embeddings(raw: bytes, body: dict[str, Any], *, engine: str, features: Features) -> Call:
    """Checks a body; ApiFault for what is malformed, and for an engine that has no embeddings."""
    if features.takes_anything:
        given = body.get("input")
        return Call(EMBEDDINGS_PATH, raw, body, None, prompt_tokens(given) if isinstance(given, str) else 0)
    if not features.embeddings:
        message = (
            f"the {engine} engine gives no embeddings of this model"
            " (llamacpp and transformers do, where the server is started with --pooling)"
        )
        raise refusal(message, param="model", code="unsupported_parameter")
    try:
        request = EmbeddingRequest.model_validate(body, strict=True)
    except ValidationError as error:
        refuse_invalid(error)
    _check_inputs(request.inputs)
    asked = {"model": request.model, "input": request.input, "encoding_format": "float"}
    return Call(EMBEDDINGS_PATH, None, asked, None, prompt_tokens(request.input), EmbeddingsVoice(request))


def _check_inputs(inputs: Sequence[Any]) -> None:
    if not 1 <= len(inputs) <= _MOST_INPUTS:
        raise invalid_value("input", f"must be 1 to {_MOST_INPUTS} inputs")
    for index, one in enumerate(inputs):
        where = f"input.{index}" if len(inputs) > 1 else "input"
        if not one:
            raise invalid_value(where, "is empty")
        if not isinstance(one, str) and any(not 0 <= token < 2**31 for token in one):
            raise invalid_value(where, "token ids go from 0 to 2147483647")


class EmbeddingsVoice(PlainVoice):
    """Shortens and encodes the engine's vectors.

    A vector cut to its first `dimensions` numbers is brought back to length 1, as OpenAI does; how much that
    loses is the model's affair.
    """

    def __init__(self, request: EmbeddingRequest) -> None:
        self._dimensions = request.dimensions
        self._base64 = request.encoding_format == "base64"
        self._model = request.model

    def whole(self, body: bytes) -> bytes:
        """ApiFault 400 for more dimensions than the model has."""
        answer: dict[str, Any] = json.loads(body)
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(item["embedding"])}
            for index, item in enumerate(cast("list[dict[str, Any]]", answer["data"]))
        ]
        return json.dumps({**answer, "model": self._model, "data": data}).encode()

    def _encoded(self, vector: list[float]) -> list[float] | str:
        shortened = vector if self._dimensions is None else _shortened(vector, self._dimensions)
        if not self._base64:
            return shortened
        return base64.b64encode(struct.pack(f"<{len(shortened)}f", *shortened)).decode()


def _shortened(vector: list[float], dimensions: int) -> list[float]:
    if dimensions > len(vector):
        raise invalid_value("dimensions", f"this model's embeddings have {len(vector)}")
    cut = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in cut))
    return [value / length for value in cut] if length else cut
