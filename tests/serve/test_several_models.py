"""Several models behind one endpoint, and what is said of the whole surface."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from decant_serve.openapi import openapi_document

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def server(
    serve_for_session: Callable[..., Any],
    write_script: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Two models, one of them remote: the other one again under another name."""
    with serve_for_session(write_script({"chunks": ["from afar"]})) as remote:
        file = tmp_path_factory.mktemp("config") / "serve.toml"
        file.write_text(
            f'body_limit_bytes = 1000\n[[models]]\nmodel = "{write_script({"chunks": ["here"]})}"\n'
            'model_name = "near"\nparallel = 2\n'
            f'[[models]]\nbase_url = "{remote.base_url}"\nmodel_name = "scripted"\n'
        )
        with serve_for_session("--config", file) as running:
            yield running


def test_a_request_goes_to_the_model_that_it_names(server: Any) -> None:
    for model, text in (("near", "here"), ("scripted", "from afar")):
        answer = server.chat("hi", model=model)
        assert answer.json()["choices"][0]["message"]["content"] == text
        record = server.timing(answer)
        assert record["model"] == model
        assert record["engine_name"] == ("scripted" if model == "near" else "openai")


def test_all_are_listed_and_each_is_described(server: Any) -> None:
    listed = server.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["near", "scripted"]
    assert server.http.get("/v1/models/near").json()["decant"]["parallel"] == 2
    assert set(server.http.get("/health").json()["models"]) == {"near", "scripted"}
    assert 'decant_engine_up{model="scripted",engine="openai"} 1' in server.http.get("/metrics").text


def test_an_unknown_model_is_told_which_there_are(server: Any) -> None:
    error = server.chat("hi", model="far").json()["error"]
    assert error["code"] == "model_not_found"
    assert "`near`, `scripted`" in error["message"]


def test_the_ready_line_names_each(server: Any) -> None:
    log = server.log.read_text()
    assert "serving near on http://" in log
    assert "serving scripted on http://" in log


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[models]]\nmodel = "{a}"\n[[models]]\nmodel = "{a}"\n', "two models are called scripted"),
        ('threads = 2\n[[models]]\nmodel = "{a}"\n', "threads: with several models"),
        ('[[models]]\nmodle = "{a}"\n', "did you mean model"),
        ("[[models]]\n", "give either MODEL or base_url"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(
    text: str,
    complaint: str,
    tmp_path: Path,
    run_decant: Callable[..., Any],
    write_script: Callable[..., Path],
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text.replace("{a}", str(write_script({"chunks": ["hi"]}))))
    done = run_decant("serve", "--config", file, "--port", "0")
    assert done.returncode == 2
    assert complaint in done.stderr


def test_the_openapi_document_is_served_and_its_pages_answer(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    assert document == openapi_document()
    for path, methods in document["paths"].items():
        concrete = path.replace("{model}", "near").replace("{request_id}", "none")
        status = server.http.request(next(iter(methods)).upper(), concrete, json={}).status_code
        assert str(status) in methods[next(iter(methods))]["responses"], path


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        value = list(value.values())
    for inner in value if isinstance(value, list) else []:
        yield from references(inner)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = openapi_document()
    for reference in references(document):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert isinstance(place, dict)
