"""Tiny models with golden prompts, and `decant serve` processes to try them on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from decant.artifact import write_manifest
from decant.golden import GoldenPrompt, GoldenReport, GoldenSet
from decant_serve.engines.hf.app import HfApp
from decant_serve.engines.hf.loading import load
from decant_serve.engines.hf.scheduler import Scheduler
from decant_serve.engines.protocol import EngineSettings
from decant_serve.engines.transformers import Transformers, as_in_training
from decant_serve.golden_check import check_golden
from decant_serve.target import find_target

# Long enough for a machine that does other things beside; see the timeout marks.
_START_LIMIT_S = 150.0
_SPECIALS = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|fin|>"]
_TEXTS = ["the cat sat on the mat and said 1 2 3 4 5", "hello world to all of us", "Grüße aus München 🙂"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|fin|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOL_TEMPLATE = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}<|fin|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if m['content'] else '' }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|fin|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CALL = ("<tool_call>", '\n{"name": "pick", "arguments": ', '{"label": "yes", "n": 1}', "}\n</tool_call>")
_QUESTIONS = ["hello cat 12", "the mat said 3 4", "Grüße to all 🙂"]
_ENDS_AFTER = 7
_MAX_TOKENS = 16


def train_tokenizer(template: str, **settings: Any) -> Any:
    """A byte-level BPE of at most 320 tokens with a chat template."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=_SPECIALS, show_progress=False
    )
    plain.train_from_iterator(_TEXTS * 10, trainer)
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<|pad|>", eos_token="<|fin|>", **settings
    )
    tokenizer.chat_template = template
    return tokenizer


def random_llama(tokenizer: Any, *, seed: int = 0) -> Any:
    """A two-layer Llama with weights wide enough that its greedy tokens are clear-cut."""
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval()


def chat(question: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    return [{"role": "user", "content": question}]


def _greedy(
    model: Any, prompt_ids: Sequence[int], end: int | None
) -> tuple[list[int], list[float], list[float]]:
    """Tokens, log probabilities and margins, each step computed from the whole text, without a cache."""
    ids, logprobs, margins = list(prompt_ids), [], []
    while len(ids) < len(prompt_ids) + _MAX_TOKENS:
        with torch.inference_mode():
            step = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)
        best = step.topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        if int(best.indices[0]) == end:
            break
        ids.append(int(best.indices[0]))
        logprobs.append(float(best.values[0]))
    return ids[len(prompt_ids) :], logprobs, margins


def plant_end(model: Any, prompt_ids: Sequence[int], end: int) -> None:
    """Turns the end token's row towards a state, so that the greedy answer to one prompt ends there."""
    before, _, _ = _greedy(model, prompt_ids, None)
    ids = torch.tensor([[*prompt_ids, *before[:_ENDS_AFTER]]])
    with torch.inference_mode():
        state = model.model(ids).last_hidden_state[0, -1]
        best = model.lm_head(state).max()
        model.lm_head.weight[end] = state * (best + 3.0) / state.dot(state)


def record(model: Any, tokenizer: Any) -> GoldenSet:
    """The golden set of a model in memory."""
    prompts: list[GoldenPrompt] = []
    for question in _QUESTIONS:
        rendered = tokenizer.apply_chat_template(chat(question), tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        tokens, logprobs, margins = _greedy(model, prompt_ids, tokenizer.eos_token_id)
        prompts.append(
            GoldenPrompt(
                messages=tuple(chat(question)),
                rendered=rendered,
                prompt_ids=tuple(prompt_ids),
                token_ids=tuple(tokens),
                logprobs=tuple(logprobs),
                margins=tuple(margins),
                finish="length" if len(tokens) == _MAX_TOKENS else "stop",
            )
        )
    return GoldenSet(
        stage="trained", eos_id=tokenizer.eos_token_id, max_tokens=_MAX_TOKENS, prompts=tuple(prompts)
    )


@pytest.fixture(scope="session")
def record_golden() -> Callable[[Any, Any], GoldenSet]:
    """Records the golden set of a model in memory."""
    return record


async def check_golden_here(folder: Path) -> GoldenReport:
    """What the transformers engine's own app says to an artifact's golden prompts, without its process."""
    target = find_target(folder)
    engine = Transformers(as_in_training(EngineSettings(target, Path("/unused"), 1, 512, 4)))
    loaded = load(engine.model)
    scheduler = Scheduler(loaded, parallel=4)
    scheduler.start()
    transport = httpx.ASGITransport(HfApp(loaded, scheduler, model=target.name).app())
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        report = await check_golden(engine, client, target.manifest)
    scheduler.stop()
    return report


@pytest.fixture(scope="session")
def check_here() -> Callable[[Path], Awaitable[GoldenReport]]:
    """Checks an artifact with the transformers engine in this process."""
    return check_golden_here


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A model in memory with what was recorded of it; `save` writes it, whole or broken on purpose."""

    model: Any
    tokenizer: Any
    golden: GoldenSet

    def save(self, folder: Path, *, breaking: Callable[[Path], None] | None = None) -> Path:
        """Writes an artifact; `breaking` spoils its files before they are hashed, as a faulty export does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if breaking:
            breaking(folder)
        write_manifest(folder, name=folder.name, kind="hf", method="full", golden=self.golden)
        return folder


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """A random Llama whose first golden prompt ends by itself."""
    return make_tiny_model(TEMPLATE)


@pytest.fixture(scope="session")
def tiny_model_with_begin() -> TinyModel:
    """The same with a template that writes the begin token, which the tokenizer adds to plain text too."""
    return make_tiny_model("{{ bos_token }}" + TEMPLATE, bos_token="<|system|>", add_bos_token=True)


@pytest.fixture(scope="session")
def tool_model() -> TinyModel:
    """A model that calls the function `pick` whatever it is asked: its tokens follow each other."""
    tokenizer = train_tokenizer(TOOL_TEMPLATE)
    tokenizer.add_tokens(list(_CALL))
    model = random_llama(tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    chain = tokenizer.convert_tokens_to_ids(["<|assistant|>", *_CALL, "<|fin|>"])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following] = model.model.norm(model.model.embed_tokens.weight[token])
    return TinyModel(model, tokenizer, record(model, tokenizer))


def make_tiny_model(template: str, **settings: Any) -> TinyModel:
    """Trains the tokenizer, draws the weights, records the golden prompts."""
    tokenizer = train_tokenizer(template, **settings)
    model = random_llama(tokenizer)
    first = tokenizer.apply_chat_template(chat(_QUESTIONS[0]), add_generation_prompt=True, return_dict=False)
    plant_end(model, first, tokenizer.eos_token_id)
    golden = record(model, tokenizer)
    assert len(golden.prompts[0].token_ids) == _ENDS_AFTER
    return TinyModel(model, tokenizer, golden)


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an artifact."""
    return tiny_model.save(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF artifact, by the product's own converter."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    output = tmp_path_factory.mktemp("gguf") / "tiny-f16"
    done = decant("quantize", str(tiny_folder), "--output", str(output), "--method", "gguf:F16")
    assert done.returncode == 0, done.stderr
    return output


def decant(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    command = [sys.executable, "-m", "decant", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_START_LIMIT_S, check=False)


@pytest.fixture(scope="session")
def run_decant() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one command to its end: run_decant("serve", folder, "--check-only")."""
    return lambda *arguments: decant(*(str(argument) for argument in arguments))


class Server:
    """A running `decant serve`."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.base_url: str = ready["base_url"]
        self.model: str = ready["model"]
        self.log = log
        self.http = httpx.Client(base_url=self.base_url.removesuffix("/v1"), timeout=30.0)

    def chat(self, question: str, **options: Any) -> httpx.Response:
        """POST /v1/chat/completions."""
        body = {"model": self.model, "messages": chat(question), "temperature": 0, **options}
        return self.http.post("/v1/chat/completions", json=body)

    def timing(self, response: httpx.Response) -> dict[str, Any]:
        """The timing record of an answered request."""
        request_id = response.headers["x-request-id"]
        return self.http.get(f"/v1/requests/{request_id}/timing").json()

    def engine_process(self) -> int:
        """The engine's process id: the gateway's only child."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


Serve = Callable[..., Any]


@contextmanager
def running_server(folder: Path, *arguments: str) -> Generator[Server]:
    """`decant serve` on a free port while the context lasts; `folder` takes its log and ready file."""
    ready, log = folder / "ready.json", folder / "serve.log"
    command = [sys.executable, "-m", "decant", "serve", *arguments, "--port", "0", "--ready-file", str(ready)]
    # A file of several models says it for each.
    command += [] if "--config" in arguments else ["--threads", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        give_up_at = time.monotonic() + _START_LIMIT_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.02)
        server = Server(process, json.loads(ready.read_text()), log)
        with server.http:
            yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Starts a server for one test: `with serve("model", "--flag", "value") as server`."""
    return lambda *arguments: running_server(tmp_path, *(str(argument) for argument in arguments))


@pytest.fixture(scope="session")
def serve_for_session(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """The same for a server that several tests share."""
    return lambda *arguments: running_server(
        tmp_path_factory.mktemp("serve"), *(str(argument) for argument in arguments)
    )


@pytest.fixture(scope="session")
def transformers_server(serve_for_session: Serve, tiny_folder: Path) -> Iterator[Server]:
    """The tiny model on the transformers engine."""
    with serve_for_session(tiny_folder, "--parallel", 4) as running:
        yield running


@pytest.fixture(scope="session")
def llamacpp_server(serve_for_session: Serve, tiny_gguf: Path) -> Iterator[Server]:
    """The tiny model on the llamacpp engine."""
    with serve_for_session(tiny_gguf, "--parallel", 4) as running:
        yield running


@pytest.fixture(scope="session")
def vllm_options() -> tuple[object, ...]:
    """How a folder is served on the vllm engine, where there is one."""
    python = os.environ.get("DECANT_VLLM_PYTHON")
    if python is None:
        pytest.skip("DECANT_VLLM_PYTHON names no interpreter with vLLM")
    return ("--engine", "vllm", "--engine-python", python, "--context", 512, "--parallel", 4)


@pytest.fixture(scope="session")
def vllm_server(serve_for_session: Serve, tiny_folder: Path, vllm_options: Any) -> Iterator[Server]:
    """The tiny model on the vllm engine."""
    with serve_for_session(tiny_folder, *vllm_options) as running:
        running.http.timeout = 120.0
        yield running


@pytest.fixture(scope="session")
def write_script(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a script for the scripted engine from its answers."""

    def write(*answers: dict[str, Any]) -> Path:
        path = tmp_path_factory.mktemp("script") / "scripted.json"
        path.write_text(json.dumps({"answers": answers}))
        return path

    return write


def is_alive(process_id: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process_id}/stat").read_text()
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def ends() -> Callable[[int], bool]:
    """Whether a process is gone within a few seconds."""

    def wait(process_id: int) -> bool:
        give_up_at = time.monotonic() + 30
        while is_alive(process_id) and time.monotonic() < give_up_at:
            time.sleep(0.02)
        return not is_alive(process_id)

    return wait
