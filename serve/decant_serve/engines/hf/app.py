"""The transformers engine's HTTP app: OpenAI's routes over the decoding thread, and golden prompts."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from decant.errors import ArtifactError
from decant.golden import Observation
from decant.wire import ChatRequest, CompletionRequest
from decant_serve.answers import Answer, Choice, EngineTimings, ScoredToken, Usage
from decant_serve.calls import EMBEDDINGS_PATH, PATHS
from decant_serve.calls import Route as RouteName
from decant_serve.disconnects import ClientGone, while_connected
from decant_serve.embeddings import EmbeddingRequest
from decant_serve.engines.hf.loading import LoadedModel, load
from decant_serve.engines.hf.sampling import Sampling
from decant_serve.engines.hf.scheduler import Broken, Job, Piece, Scheduler
from decant_serve.engines.hf.vectors import EmbeddingJob
from decant_serve.engines.protocol import ENGINE_KEEPS_IDLE_S
from decant_serve.engines.transformers import OBSERVE_PATH, ModelSettings
from decant_serve.openai_errors import ApiFault, refusal, unavailable


class HfApp:
    """Answers requests that the gateway has checked; what only the tokenizer can judge is checked here."""

    def __init__(self, loaded: LoadedModel, scheduler: Scheduler, *, model: str) -> None:
        self._loaded = loaded
        self._scheduler = scheduler
        self._model = model

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health", _health),
                Route(PATHS["chat"], self._chat, methods=["POST"]),
                Route(PATHS["completions"], self._completion, methods=["POST"]),
                Route(EMBEDDINGS_PATH, self._embeddings, methods=["POST"]),
                Route(OBSERVE_PATH, self._observe, methods=["POST"]),
            ],
            exception_handlers={ApiFault: _fault},
        )

    async def _chat(self, request: Request) -> Response:
        body = ChatRequest.model_validate(await request.json())
        prompt_ids = self._loaded.encode(self._render(body), add_special_tokens=False)
        top = (body.top_logprobs or 0) if body.logprobs else None
        return await self._answer(request, "chat", body, self._job(prompt_ids, body, top))

    async def _completion(self, request: Request) -> Response:
        body = CompletionRequest.model_validate(await request.json())
        job = self._job(self._prompt_ids(body), body, body.logprobs)
        return await self._answer(request, "completions", body, job)

    async def _embeddings(self, request: Request) -> Response:
        asked = EmbeddingRequest.model_validate(await request.json())
        ids = [self._input_ids(one, place) for place, one in enumerate(asked.inputs)]
        job = EmbeddingJob(ids)
        self._scheduler.submit(job)
        try:
            vectors = await while_connected(request.receive, job.result())
        except ClientGone:
            return Response(status_code=499)
        except RuntimeError as error:
            raise unavailable(f"embedding failed: {error}") from None
        tokens = sum(map(len, ids))
        data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": self._model, "data": data, "usage": usage})

    def _input_ids(self, given: str | list[int], place: int) -> list[int]:
        ids = self._loaded.encode(given, add_special_tokens=True) if isinstance(given, str) else given
        if not ids:
            raise refusal(f"input {place} has no tokens", param="input", code="invalid_value")
        self._check_vocabulary(ids, "input")
        if len(ids) > self._loaded.context:
            message = f"input {place} has {len(ids)} tokens; the context holds {self._loaded.context}"
            raise refusal(message, param="input", code="context_length_exceeded")
        return ids

    async def _observe(self, request: Request) -> Response:
        asked: dict[str, Any] = await request.json()
        rendered = self._loaded.render(asked["messages"])
        prompt_ids = self._loaded.encode(rendered, add_special_tokens=False)
        greedy = Sampling(0.0, 1.0, None, asked["max_tokens"], (), 0)
        job = Job(prompt_ids, greedy)
        pieces = [piece async for batch in self._pieces(job) for piece in batch]
        taken = [piece for piece in pieces if piece.token_id is not None and piece.scored is not None]
        observation = Observation(
            rendered=rendered,
            prompt_ids=tuple(prompt_ids),
            token_ids=tuple(piece.token_id for piece in taken if piece.token_id is not None),
            logprobs=tuple(piece.scored.logprob for piece in taken if piece.scored is not None),
            finish="stop" if pieces[-1].finish == "stop" else "length",
        )
        return Response(observation.model_dump_json(), media_type="application/json")

    def _render(self, body: ChatRequest) -> str:
        if self._loaded.tokenizer.chat_template is None:
            raise refusal("the model has no chat template; use /v1/completions", code="no_chat_template")
        from jinja2 import TemplateError

        try:
            return self._loaded.render([{"role": m.role, "content": m.text()} for m in body.messages])
        except TemplateError as error:
            raise refusal(f"messages: the chat template refuses them: {error}", param="messages") from None

    def _prompt_ids(self, body: CompletionRequest) -> list[int]:
        prompt = body.prompt
        if isinstance(prompt, str):
            return self._loaded.encode(prompt, add_special_tokens=True)
        ids = [item for item in prompt if isinstance(item, int)]
        if len(ids) != len(prompt):
            raise refusal("prompt: send one prompt per request", param="prompt", code="unsupported_value")
        self._check_vocabulary(ids, "prompt")
        return ids

    def _check_vocabulary(self, ids: Sequence[int], param: str) -> None:
        vocabulary = self._loaded.model.config.get_text_config().vocab_size
        if any(not 0 <= token < vocabulary for token in ids):
            message = f"{param}: token ids go from 0 to {vocabulary - 1}"
            raise refusal(message, param=param, code="invalid_value")

    def _job(self, prompt_ids: Sequence[int], body: ChatRequest | CompletionRequest, top: int | None) -> Job:
        context = self._loaded.context
        if not prompt_ids:
            raise refusal("the prompt has no tokens", param="prompt", code="invalid_value")
        if len(prompt_ids) >= context:
            message = (
                f"the prompt has {len(prompt_ids)} tokens; the context of {context} must hold the answer too"
            )
            raise refusal(message, code="context_length_exceeded")
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            max_tokens=body.token_limit or context,
            stops=body.stops,
            top_logprobs=top,
        )
        return Job(prompt_ids, sampling, choices=body.n or 1)

    async def _answer(
        self, request: Request, route: RouteName, body: ChatRequest | CompletionRequest, job: Job
    ) -> Response:
        answer = Answer(route, self._model)
        if body.stream:
            events = self._stream(job, answer, wants_usage=body.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            return JSONResponse(await while_connected(request.receive, self._whole(job, answer)))
        except ClientGone:
            return Response(status_code=499)

    async def _whole(self, job: Job, answer: Answer) -> dict[str, Any]:
        drafts = [_Draft() for _ in range(job.choices)]
        made_s: list[float] = []
        async for pieces in self._pieces(job):
            made_s += [piece.made_s for piece in pieces]
            for piece in pieces:
                drafts[piece.choice].add(piece)
        scored = job.sampling.top_logprobs is not None
        choices = [draft.choice(scored=scored) for draft in drafts]
        usage = Usage(len(job.prompt_ids), sum(draft.tokens for draft in drafts))
        return answer.whole(choices, usage, _timings(job, made_s))

    async def _stream(self, job: Job, answer: Answer, *, wants_usage: bool) -> AsyncIterator[bytes]:
        opened: set[int] = set()
        made_s: list[float] = []
        scored = job.sampling.top_logprobs is not None
        try:
            async for pieces in self._pieces(job):
                made_s += [piece.made_s for piece in pieces]
                new = sorted({piece.choice for piece in pieces} - opened)
                opened.update(new)
                events = [answer.opening(choice) for choice in new]
                yield b"".join([*events, *(_event(answer, piece, scored=scored) for piece in pieces)])
        except ApiFault as fault:
            yield fault.event()
            return
        usage = Usage(len(job.prompt_ids), len(made_s)) if wants_usage else None
        yield answer.closing(usage, _timings(job, made_s))

    async def _pieces(self, job: Job) -> AsyncIterator[list[Piece]]:
        """Submits the job and gives its pieces until every choice has ended; leaving early cancels it."""
        self._scheduler.submit(job)
        running = job.choices
        try:
            while running:
                pieces: list[Piece] = []
                for piece in await job.next_pieces():
                    if isinstance(piece, Broken):
                        raise unavailable(f"decoding failed: {piece.message}")
                    pieces.append(piece)
                    running -= piece.finish is not None
                yield pieces
        finally:
            job.is_cancelled = True


class _Draft:
    """One choice of an answer that is not streamed, as it grows."""

    def __init__(self) -> None:
        self.tokens = 0
        self._texts: list[str] = []
        self._scored: list[ScoredToken] = []
        self._finish = "stop"

    def add(self, piece: Piece) -> None:
        self.tokens += 1
        self._texts.append(piece.text)
        self._scored += [piece.scored] if piece.scored else []
        self._finish = piece.finish or self._finish

    def choice(self, *, scored: bool) -> Choice:
        return Choice("".join(self._texts), self._finish, tuple(self._scored) if scored else None)


def _timings(job: Job, made_s: Sequence[float]) -> EngineTimings:
    assert job.joined_s is not None, "a job that has pieces has joined"
    return EngineTimings(job.joined_s - job.submitted_s, made_s[0] - job.joined_s, made_s[-1] - made_s[0])


def _event(answer: Answer, piece: Piece, *, scored: bool) -> bytes:
    tokens = ([piece.scored] if piece.scored else []) if scored else None
    return answer.piece(piece.choice, piece.text, tokens=tokens, finish_reason=piece.finish)


async def _fault(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiFault)
    return error.response()


async def _health(_: Request) -> Response:
    return Response(status_code=200)


def main() -> None:
    """Loads the model that the first argument describes and serves it until SIGTERM."""
    settings = ModelSettings(**json.loads(sys.argv[1]))
    try:
        loaded = load(settings)
    except ArtifactError as error:
        sys.exit(f"{error}")
    scheduler = Scheduler(loaded, parallel=settings.parallel)
    scheduler.start()
    app = HfApp(loaded, scheduler, model=settings.name).app()
    uvicorn.run(app, uds=settings.socket, log_level="warning", timeout_keep_alive=ENGINE_KEEPS_IDLE_S)
    scheduler.stop()


if __name__ == "__main__":
    main()
