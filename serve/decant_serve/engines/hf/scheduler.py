"""The decoding thread: takes waiting jobs into the batch, steps it, and hands each job its tokens."""

import asyncio
import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from decant_serve.answers import ScoredToken
from decant_serve.engines.hf.batch import Batch
from decant_serve.engines.hf.loading import LoadedModel
from decant_serve.engines.hf.sampling import Sampling, Scored, choose, score
from decant_serve.engines.hf.text import TextStream
from decant_serve.engines.hf.vectors import EmbeddingJob, embed_some

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to one choice. `token_id` is None for the end token; `finish` ends the choice.

    `made_s` is the reading of `time.perf_counter()` when the token was there.
    """

    choice: int
    text: str
    token_id: int | None
    scored: ScoredToken | None
    finish: str | None
    made_s: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine failed under a job."""

    message: str


class Job:
    """One request: its prompt, how many answers to draw, and the queue that they arrive in.

    Made and read on the event loop's thread; the decoding thread calls `deliver`, and before that sets
    `joined_s`, when the first of its rows is taken into the batch.
    """

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling, *, choices: int = 1) -> None:
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.choices = choices
        self.is_cancelled = False
        self.submitted_s = time.perf_counter()
        self.joined_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Broken] = asyncio.Queue()

    async def next_pieces(self) -> list[Piece | Broken]:
        """Everything that has come since the last call, at least one piece."""
        pieces = [await self._pieces.get()]
        while not self._pieces.empty():
            pieces.append(self._pieces.get_nowait())
        return pieces

    def deliver(self, piece: Piece | Broken) -> None:
        """Hands a piece over to the event loop."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


@dataclass(slots=True)
class _Row:
    """One answer in the batch."""

    job: Job
    choice: int
    sampling: Sampling
    random: random.Random
    text: TextStream
    token_ids: list[int] = field(default_factory=list)
    is_done: bool = False


class Scheduler:
    """Owns the model: nothing else may touch it while the thread runs."""

    def __init__(self, loaded: LoadedModel, *, parallel: int) -> None:
        self._loaded = loaded
        self._parallel = parallel
        self._batch = Batch(loaded)
        self._rows: list[_Row] = []
        self._waiting: deque[_Row] = deque()
        self._embedding: deque[EmbeddingJob] = deque()
        self._inbox: queue.SimpleQueue[Job | EmbeddingJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step it is in."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, job: Job | EmbeddingJob) -> None:
        """Queues a job: itself it gives what comes, and its `is_cancelled` drops it at the next step."""
        self._inbox.put(job)

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while self._take_jobs():
                try:
                    self._drop_ended()
                    self._join_waiting()
                    if self._rows:
                        self._step()
                    self._embed()
                except Exception as error:  # noqa: BLE001 - the boundary of the jobs in the batch
                    _log.exception("event=step-failed rows=%d", len(self._rows))
                    self._break_all(f"{type(error).__name__}: {error}")

    def _take_jobs(self) -> bool:
        """Empties the inbox, waits for a job when there is nothing to do; False when the thread shall end."""
        idle = not self._rows and not self._waiting and not self._embedding
        while idle or not self._inbox.empty():
            job = self._inbox.get()
            if job is None:
                return False
            if isinstance(job, EmbeddingJob):
                self._embedding.append(job)
            else:
                self._waiting.extend(self._new_row(job, choice) for choice in range(job.choices))
            idle = False
        return True

    def _embed(self) -> None:
        """One batch of the first job that wants vectors, so that decoding goes on between them."""
        while self._embedding and self._embedding[0].is_cancelled:
            self._embedding.popleft()
        if not self._embedding:
            return
        job = self._embedding[0]
        try:
            embed_some(self._loaded, job)
        except Exception as error:  # noqa: BLE001 - the boundary of this job; those that decode go on
            _log.exception("event=embedding-failed inputs=%d", len(job.inputs))
            self._embedding.popleft().fail(f"{type(error).__name__}: {error}")
            return
        if not job.left:
            self._embedding.popleft().finish()

    def _new_row(self, job: Job, choice: int) -> _Row:
        seed = job.sampling.seed
        room = self._loaded.context - len(job.prompt_ids)
        return _Row(
            job=job,
            choice=choice,
            sampling=replace(job.sampling, max_tokens=min(job.sampling.max_tokens, room)),
            random=random.Random(None if seed is None else f"{seed}/{choice}"),
            text=TextStream(self._loaded.decode, job.sampling.stops),
        )

    def _drop_ended(self) -> None:
        for row in self._rows:
            row.is_done = row.is_done or row.job.is_cancelled
        staying = [place for place, row in enumerate(self._rows) if not row.is_done]
        if len(staying) < len(self._rows) and (not staying or self._batch.can_change):
            self._batch.keep(staying)
            self._rows = [self._rows[place] for place in staying]

    def _join_waiting(self) -> None:
        free = self._parallel - len(self._rows)
        if free <= 0 or (self._rows and not self._batch.can_change):
            return
        joining: list[_Row] = []
        while self._waiting and len(joining) < free:
            row = self._waiting.popleft()
            if not row.job.is_cancelled:
                joining.append(row)
        if joining:
            joined_s = time.perf_counter()
            for row in joining:
                row.job.joined_s = row.job.joined_s or joined_s
            self._rows += joining
            logits_BV = self._batch.join([row.job.prompt_ids for row in joining])
            self._take_tokens(joining, logits_BV)

    def _step(self) -> None:
        # A row that joined and ended at once is fed like the others, and dropped before the next step.
        last = [row.token_ids[-1] for row in self._rows]
        self._take_tokens(self._rows, self._batch.step(last))

    def _take_tokens(self, rows: list[_Row], logits_BV: "torch.Tensor") -> None:
        samplings = [row.sampling for row in rows]
        tokens = choose(logits_BV, samplings, [row.random for row in rows])
        scores = score(logits_BV, tokens, samplings)
        for row, token, scored in zip(rows, tokens, scores, strict=True):
            row.token_ids.append(token)
            if not row.is_done:
                self._take_token(row, token, scored)

    def _take_token(self, row: _Row, token: int, scored: Scored | None) -> None:
        ended = token in self._loaded.end_ids
        text = "" if ended else row.text.push(token)
        finish = "stop" if ended or row.text.is_stopped else None
        if finish is None and len(row.token_ids) >= row.sampling.max_tokens:
            finish = "length"
        if finish:
            text += row.text.finish()
            row.is_done = True
        spelled = None if ended or scored is None else self._spell(token, scored)
        made_s = time.perf_counter()
        row.job.deliver(Piece(row.choice, text, None if ended else token, spelled, finish, made_s))

    def _spell(self, token: int, scored: Scored) -> ScoredToken:
        top = tuple(ScoredToken(self._loaded.spell(id_), logprob) for id_, logprob in scored.top)
        return ScoredToken(self._loaded.spell(token), scored.logprob, top)

    def _break_all(self, message: str) -> None:
        for job in {id(row.job): row.job for row in (*self._rows, *self._waiting)}.values():
            job.deliver(Broken(message))
        self._rows.clear()
        self._waiting.clear()
        self._batch = Batch(self._loaded)
