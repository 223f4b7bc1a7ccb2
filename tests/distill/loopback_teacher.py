"""A teacher for tests: a real server on this machine, which answers, refuses, stalls and dies as told."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from decant.config import load_config
from decant.store import RequestStore
from decant_distill.label import LabelConfig

Reply = Callable[[str, dict[str, Any]], Response]


def answer(text: str, *, finish_reason: str = "stop", reasoning: str | None = None) -> Response:
    message = {"role": "assistant", "content": text, "reasoning_content": reasoning}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return JSONResponse({"id": "x", "model": "big", "choices": [choice], "usage": usage})


def refusal(status: int, message: str, *, code: str | None = None, **headers: str) -> Response:
    error = {"message": message, "type": "error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def reasoned(prompt: str, body: dict[str, Any]) -> Response:
    return answer(f"because of {prompt}\nAnswer: {prompt.upper()}")


class Teacher:
    """A small OpenAI endpoint; `reply` decides what each prompt gets, `seen` keeps what was asked."""

    def __init__(self) -> None:
        self.reply: Reply = reasoned
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.port = 0
        self.stop: Callable[[], None] = lambda: None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def seen(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
            return self.reply(body["messages"][-1]["content"], body)
        finally:
            self.in_flight -= 1


@contextmanager
def serving(teacher: Teacher, *, port: int = 0) -> Generator[Teacher]:
    app = Starlette(routes=[Route("/v1/chat/completions", teacher.chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    teacher.stop = lambda: setattr(server, "should_exit", True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        teacher.port = server.servers[0].sockets[0].getsockname()[1]
        yield teacher
    finally:
        teacher.stop()
        thread.join(timeout=10)


def write_rows(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prompts(*texts: str) -> list[Any]:
    return [{"id": text, "prompt": text} for text in texts]


def config_for(teacher: Teacher, folder: Path, rows: list[Any], **changes: Any) -> LabelConfig:
    endpoint = {"base_url": teacher.base_url, "model": "big", **changes.pop("endpoint", {})}
    values = {
        "data": write_rows(folder / "data.jsonl", rows),
        "output": folder / "labels.jsonl",
        "endpoint": endpoint,
        "max_attempts": 3,
        **changes,
    }
    return load_config(LabelConfig, values=values)


def labels(config: LabelConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in config.output.read_text(encoding="utf-8").splitlines()]


def summary(config: LabelConfig) -> dict[str, Any]:
    return json.loads(config.summary_path.read_text(encoding="utf-8"))


def stored(config: LabelConfig) -> dict[str, int]:
    with RequestStore.open(config.store_path) as store:
        return {str(status): count for status, count in store.counts().items()}


def start(config: LabelConfig, *, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    file = config.output.with_suffix(".config.json")
    file.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "decant", "label", "--config", str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    errors = None if before is None else subprocess.PIPE
    return subprocess.Popen(command, env=environment, preexec_fn=before, stderr=errors)  # noqa: PLW1509


def wait_until(is_true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
