"""The Files and Batches APIs, as OpenAI's own client sees them: round trips, faults, keys, kills."""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.timeout(240)

MODEL = "scripted"


def lines(*contents: str, model: str = MODEL, url: str = "/v1/chat/completions") -> bytes:
    """A batch's input: each content is also its custom_id."""
    rows = [
        {"custom_id": content, "method": "POST", "url": url,
         "body": {"model": model, "messages": [{"role": "user", "content": content}]}}
        for content in contents
    ]  # fmt: skip
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


_opened: list[openai.OpenAI] = []


@pytest.fixture(autouse=True)
def _all_closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def client_of(server: Any, key: str = "none") -> openai.OpenAI:
    _opened.append(openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0))
    return _opened[-1]


def submitted(client: openai.OpenAI, content: bytes, **changes: Any) -> Any:
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    options: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **changes}
    return client.batches.create(input_file_id=file.id, **options)


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    return until(
        client, batch_id, lambda batch: batch.status in ("completed", "failed", "expired", "cancelled")
    )


def until(client: openai.OpenAI, batch_id: str, is_so: Callable[[Any], bool]) -> Any:
    give_up_at = time.monotonic() + 60
    while not is_so(batch := client.batches.retrieve(batch_id)):
        assert time.monotonic() < give_up_at, batch
        time.sleep(0.05)
    return batch


def rows_of(client: openai.OpenAI, file_id: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {row["custom_id"]: row for row in rows}


@pytest.fixture(scope="module")
def server(
    serve_for_session: Callable[..., Any],
    write_script: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    script = write_script(
        {"match": "bad", "status": 400, "message": "cannot be answered"},
        {"match": "slow", "chunks": ["late"], "ttft_s": 30.0},
        {"chunks": ["an", " answer"], "prompt_tokens": 7},
    )
    folder = tmp_path_factory.mktemp("batches") / "new"
    with serve_for_session(script, "--batches", folder, "--parallel", 4) as running:
        yield running


def test_a_batch_goes_round_with_openais_client(server: Any) -> None:
    client = client_of(server)
    batch = submitted(client, lines("a", "bad", "c"), metadata={"job": "x"})
    assert (batch.object, batch.status) == ("batch", "validating")
    batch = ended(client, batch.id)
    assert (batch.status, batch.model, batch.metadata) == ("completed", MODEL, {"job": "x"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (14, 4, 18)
    stamps = [
        batch.created_at,
        batch.in_progress_at,
        batch.finalizing_at,
        batch.completed_at,
        batch.expires_at,
    ]
    assert stamps == sorted(stamps)
    answered = rows_of(client, batch.output_file_id)
    assert list(answered) == ["a", "c"]
    assert answered["a"]["response"]["status_code"] == 200
    assert answered["a"]["response"]["body"]["choices"][0]["message"]["content"] == "an answer"
    refused = rows_of(client, batch.error_file_id)["bad"]
    assert (refused["response"]["status_code"], refused["error"]) == (400, None)
    assert "cannot be answered" in refused["response"]["body"]["error"]["message"]


def test_each_endpoint_that_the_gateway_has_can_be_asked(server: Any) -> None:
    client = client_of(server)
    for url, body in (
        ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
        ("/v1/responses", {"model": MODEL, "input": "hi"}),
        ("/v1/embeddings", {"model": MODEL, "input": ["hi", "ho"], "dimensions": 4}),
    ):
        row = {"custom_id": "x", "method": "POST", "url": url, "body": body}
        batch = ended(client, submitted(client, json.dumps(row).encode(), endpoint=url).id)
        assert batch.request_counts.completed == 1, url
        answer = rows_of(client, batch.output_file_id)["x"]["response"]
        assert answer["status_code"] == 200
    assert [len(vector["embedding"]) for vector in answer["body"]["data"]] == [4, 4]
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (2, 0)


def test_an_input_with_faults_fails_whole_and_names_each_line(server: Any) -> None:
    client = client_of(server)
    faulty = [
        lines("a"), lines("a"), b"{half\n", b"[1]\n", lines("b", model="gpt"), lines("c", url="/v1/else"),
        b'{"custom_id": "d", "method": "GET", "url": "/v1/chat/completions", "body": {}}\n',
        lines("e").replace(b'"model"', b'"seed": NaN, "model"'),
    ]  # fmt: skip
    batch = ended(client, submitted(client, b"".join(faulty)).id)
    assert (batch.status, batch.output_file_id, batch.request_counts.total) == ("failed", None, 0)
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_json_line"),
        (4, "invalid_json_line"),
        (5, "model_not_found"),
        (6, "mismatched_endpoint"),
        (7, "invalid_method"),
        (8, "invalid_json_line"),
    ]
    assert ended(client, submitted(client, b"\n").id).errors.data[0].code == "empty_file"


def test_a_cancelled_and_an_expired_batch_keep_what_was_answered(server: Any) -> None:
    client = client_of(server)
    contents = ["a", *(f"slow {number}" for number in range(9))]
    batch = submitted(client, lines(*contents))
    until(client, batch.id, lambda batch: batch.request_counts.completed == 1)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("cancelled", 1)
    assert list(rows_of(client, batch.output_file_id)) == ["a"]
    codes = {row["error"]["code"] for row in rows_of(client, batch.error_file_id).values()}
    assert codes == {"batch_cancelled"}
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.batches.cancel(batch.id)
    batch = ended(client, submitted(client, lines(*contents), completion_window="2s").id)
    assert (batch.status, batch.request_counts.completed) == ("expired", 1)
    unanswered = rows_of(client, batch.error_file_id)
    assert (len(unanswered), unanswered["slow 3"]["error"]["code"]) == (9, "batch_expired")


def test_files_are_listed_read_and_deleted(server: Any) -> None:
    client = client_of(server)
    made = [client.files.create(file=(f"{n}.jsonl", f"{n}\n".encode()), purpose="batch") for n in range(3)]
    newest = [file.filename for file in client.files.list(purpose="batch", limit=3).data]
    assert newest == ["2.jsonl", "1.jsonl", "0.jsonl"]
    assert (made[0].bytes, client.files.content(made[0].id).read()) == (2, b"0\n")
    assert client.files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError, match="No such file"):
        client.files.retrieve(made[0].id)
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        client.batches.create(
            input_file_id=made[0].id, endpoint="/v1/chat/completions", completion_window="24h"
        )


def test_batches_are_listed_page_by_page(server: Any) -> None:
    client = client_of(server)
    made = [submitted(client, lines("a")).id for _ in range(3)]
    pages = client.batches.list(limit=2)
    assert len(pages.data) == 2
    # Within one second, too, the newest comes first.
    assert [batch.id for batch in pages][:3] == made[::-1]
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.batches.list(limit=1000)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "vision"}}, "purpose: must be batch"),
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}}, "a file is required"),
        ({"json": {"purpose": "batch"}}, "multipart/form-data"),
        ({"files": {"file": ("a", b"x")},
          "data": {"purpose": "batch", "expires_after[seconds]": "soon"}}, "expires_after"),
    ],
)  # fmt: skip
def test_an_upload_that_cannot_be_taken_says_why(server: Any, form: dict[str, Any], message: str) -> None:
    answer = server.http.post("/v1/files", **form)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_batch_that_cannot_be_made_names_the_parameter(
    server: Any, change: dict[str, Any], param: str
) -> None:
    file = client_of(server).files.create(file=("in.jsonl", lines("a")), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answer = server.http.post("/v1/batches", json={**body, **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_key_sees_its_own_files_and_batches_alone(
    serve: Callable[..., Any],
    write_script: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEYS", "alice-0123456789abcdef,bob-0123456789abcdefgh")
    options = ["--batches", tmp_path / "b", "--api-keys-env", "KEYS", "--file-limit-bytes", 1000]
    with serve(write_script({"chunks": ["x"]}), *options) as server:
        alice, bob = (client_of(server, key) for key in os.environ["KEYS"].split(","))
        batch = ended(alice, submitted(alice, lines("a")).id)
        assert rows_of(alice, batch.output_file_id)
        for forbidden in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.files.content(batch.output_file_id),
            lambda: bob.files.delete(batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                forbidden()
        assert (list(bob.batches.list()), list(bob.files.list())) == ([], [])
        with pytest.raises(openai.APIStatusError, match="larger than 1000 bytes"):
            alice.files.create(file=("big", b"x" * 100_000), purpose="batch")


def test_a_server_without_batches_says_how_to_get_them(
    serve: Callable[..., Any], write_script: Callable[..., Path]
) -> None:
    told = pytest.raises(openai.NotFoundError, match="--batches FOLDER")
    with serve(write_script({"chunks": ["x"]})) as server, told:
        client_of(server).files.create(file=("a", b"x"), purpose="batch")


def asked_in(log: Path) -> list[int]:
    return [json.loads(line)["status"] for line in log.read_text().splitlines()]


def test_a_killed_gateway_goes_on_and_asks_nothing_again_that_was_answered(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path
) -> None:
    script = write_script({"chunks": ["x"], "ttft_s": 0.1})
    log = tmp_path / "timing.jsonl"
    options = [script, "--batches", tmp_path / "b", "--parallel", 2, "--timing-log", log]
    with serve_for_session(*options) as server:
        client = client_of(server)
        batch = submitted(client, lines(*(f"p{number}" for number in range(30))))
        until(client, batch.id, lambda batch: batch.request_counts.completed >= 8)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    before = asked_in(log).count(200)
    assert before >= 8
    with serve_for_session(*options) as server:
        client = client_of(server)
        batch = ended(client, batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 30)
        assert list(rows_of(client, batch.output_file_id)) == [f"p{number}" for number in range(30)]
        told = pytest.raises(AssertionError, match="another `decant serve` runs its batches")
        with told, serve_for_session(script, "--batches", tmp_path / "b"):
            pass
    assert asked_in(log).count(200) <= 30 + 2


def test_a_stopped_gateway_leaves_its_batch_to_the_next(
    serve_for_session: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path
) -> None:
    slow, quick = write_script({"chunks": ["x"], "ttft_s": 20.0}), write_script({"chunks": ["x"]})
    with serve_for_session(slow, "--batches", tmp_path / "b") as server:
        batch = submitted(client_of(server), lines("a", "b"))
        until(client_of(server), batch.id, lambda batch: batch.status == "in_progress")
        assert server.terminate() == 0
    with serve_for_session(quick, "--batches", tmp_path / "b") as server:
        assert ended(client_of(server), batch.id).request_counts.completed == 2


def test_live_requests_go_before_those_of_a_batch(
    serve: Callable[..., Any], write_script: Callable[..., Path], tmp_path: Path
) -> None:
    log = tmp_path / "timing.jsonl"
    script = write_script({"match": "live", "chunks": ["x"]}, {"chunks": ["x"], "ttft_s": 0.2})
    with serve(script, "--batches", tmp_path / "b", "--parallel", 1, "--timing-log", log) as server:
        client = client_of(server)
        batch = submitted(client, lines(*(f"p{number}" for number in range(12))))
        until(client, batch.id, lambda batch: batch.request_counts.completed >= 1)
        for _ in range(3):
            assert server.chat("live").status_code == 200
        # In turn with the batch's twelve, three requests would have waited for all that came before them.
        counts = client.batches.retrieve(batch.id).request_counts
        assert counts is not None
        assert counts.completed < 12
        assert ended(client, batch.id).request_counts.completed == 12
