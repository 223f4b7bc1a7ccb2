"""Tiny random models with tokenizers trained on the spot, and llama.cpp to compare them with."""

import json
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, trainers

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The first ids are the specials', then the bytes' from "!" on.
_LETTER = 40
SPECIALS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|bos|>"]
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
    "llama-bpe": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
    "qwen35": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    + _REST.replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),
}
_CORPUS = [
    "The kettle sings at 7, and at 7:45 the whole street knows that breakfast is over. " * 8,
    "Grüße aus München! Où est l'école? Привет, мир. 你好，世界。こんにちは 안녕하세요 नमस्ते مرحبا 🙂👩‍🚀 "
    * 8,
    "don't we'll I'M THEY'RE 12 345 6789\n\n\tif x != y:\r\n    return [x**2 for x in y]  # done\n" * 8,
]


def _pre_tokenizer(name: str) -> Any:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return whole
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    split = pre_tokenizers.Split(tokenizers.Regex(SPLITS.get(name, name)), "isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(pre: str = "gpt-2", *, template: str | None = TEMPLATE, **settings: Any) -> Any:
    """A byte-level BPE of up to 480 tokens; `pre` is one of llama.cpp's or a regex to split by."""
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer, plain.decoder = _pre_tokenizer(pre), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    plain.train_from_iterator(_CORPUS, trainer)
    settings = {"eos_token": "<|end|>", "pad_token": "<|pad|>", **settings}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **settings)
    tokenizer.chat_template = template
    return tokenizer


def save_model(
    folder: Path, family: str, tokenizer: Any, *, dtype: Any = torch.float32, **changes: Any
) -> Any:
    """A random two-layer model saved with its tokenizer, its weights so wide that a wrong rope shows."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # Gemma 3's plain name is that of its variant with images.
    described = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{described}Config")(**{**sizes, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


class Tiny:
    """How tests get models: `tiny.tokenizer(...)`, `tiny.save(...)`."""

    tokenizer = staticmethod(train_tokenizer)
    save = staticmethod(save_model)


@pytest.fixture
def tiny() -> type[Tiny]:
    """Makers of tokenizers and models."""
    return Tiny


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny Llama with its tokenizer, as transformers saves it."""
    save_model(tmp_path / "model", "Llama", train_tokenizer())
    return tmp_path / "model"


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Changes keys of a JSON file: edit_json(file, key=value); a dotted path as {"a.b": value}."""

    def edit(file: Path, changes: dict[str, Any]) -> None:
        tree = json.loads(file.read_text())
        for path, value in changes.items():
            *tables, key = path.split(".")
            branch = tree
            for table in tables:
                branch = branch[table]
            branch[key] = value
        file.write_text(json.dumps(tree))

    return edit


class LlamaCpp:
    """llama.cpp's own routes over one GGUF file."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": True}
        return self._ask("/tokenize", body)["tokens"]

    def render(self, messages: list[dict[str, str]]) -> str:
        return self._ask("/apply-template", {"messages": messages})["prompt"]

    def logprobs(self, ids: list[int], *, vocabulary: int) -> list[float]:
        """Log probability of every token after `ids`.

        A letter is forced (which does not change them): llama.cpp reports none for half a character.
        """
        answer = self._greedy(ids, max_tokens=1, top=vocabulary, logit_bias=[[_LETTER, 100.0]])
        found = {item["id"]: item["logprob"] for item in answer[0]["top_logprobs"]}
        return [found[token] for token in range(vocabulary)]

    def decode(self, ids: list[int], *, max_tokens: int) -> list[int]:
        """The greedy continuation, end token included."""
        return [step["id"] for step in self._greedy(ids, max_tokens=max_tokens, top=1)]

    def _greedy(self, ids: list[int], *, max_tokens: int, top: int, **more: Any) -> list[Any]:
        body = {"prompt": ids, "n_predict": max_tokens, "n_probs": top, "cache_prompt": False, **more}
        body |= {"temperature": 0.0, "samplers": ["temperature"]}
        return self._ask("/completion", body)["completion_probabilities"]

    def _ask(self, route: str, body: dict[str, Any]) -> Any:
        response = self._client.post(route, json=body)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
def llama_cpp() -> Callable[[Path], AbstractContextManager[LlamaCpp]]:
    """Loads a GGUF file in llama.cpp for as long as the context lasts."""
    xllamacpp = pytest.importorskip("xllamacpp")

    @contextmanager
    def load(file: Path) -> Generator[LlamaCpp]:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.hostnames, parameters.port = ["127.0.0.1"], 0
        parameters.n_ctx, parameters.n_parallel = 512, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.use_jinja, parameters.ui, parameters.warmup, parameters.verbosity = True, False, False, 0
        # Quantized files end in SIGSEGV on virtual machines that advertise AMX, unless weights stay unpacked.
        parameters.no_extra_bufts = True
        server = xllamacpp.Server(parameters)
        with httpx.Client(base_url=server.listening_address, timeout=30.0) as client:
            yield LlamaCpp(client)

    return load
