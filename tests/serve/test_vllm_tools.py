"""Which chat templates vLLM is given a tool parser for, and what its command line then says."""

import json
from pathlib import Path

import pytest

from decant_serve.engines.protocol import EngineSettings
from decant_serve.engines.vllm import server_command
from decant_serve.engines.vllm_runtime import VllmRuntime
from decant_serve.engines.vllm_tools import tool_parser
from decant_serve.target import Target

HERMES = "{% if tools %}{{ tools | tojson }}{% endif %}<tool_call>{{ call }}</tool_call>"
XML = "{% if tools %}{{ tools }}{% endif %}<tool_call><function={{ name }}>"


@pytest.mark.parametrize(
    ("template", "parser"), [(HERMES, "hermes"), (XML, None), ("{{ messages }}", None), (None, None)]
)
def test_a_parser_is_named_only_for_calls_of_a_known_kind(
    tmp_path: Path, template: str | None, parser: str | None
) -> None:
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    assert tool_parser(tmp_path) == parser


def test_a_template_within_the_tokenizer_s_config_is_read_too(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": HERMES}))
    assert tool_parser(tmp_path) == "hermes"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": HERMES}]
    config.write_text(json.dumps({"chat_template": named}))
    assert tool_parser(tmp_path) == "hermes"


def test_the_server_is_told_which_parser_to_use(tmp_path: Path) -> None:
    settings = EngineSettings(Target("tiny", "hf", tmp_path), tmp_path / "e.sock", 1, 512, 4)
    runtime = VllmRuntime(Path("/env/bin/python"), "0.32.0", on_cpu=False)
    assert "--tool-call-parser" not in server_command(settings, runtime, None, worker_class=None)
    (tmp_path / "chat_template.jinja").write_text(HERMES)
    command = server_command(settings, runtime, None, worker_class=None)
    assert command[command.index("--tool-call-parser") + 1] == "hermes"
