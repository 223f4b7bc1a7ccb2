# xllamacpp is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false
"""The child process around xllamacpp: llama.cpp's HTTP server on a Unix socket until the process is ended."""

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from decant_serve.engines.llamacpp import LlamaSettings

# Errors only: what is worth keeping when it does not start.
_VERBOSITY = 1
_POOLING: Mapping[str, str] = {
    "mean": "LLAMA_POOLING_TYPE_MEAN",
    "last": "LLAMA_POOLING_TYPE_LAST",
    "cls": "LLAMA_POOLING_TYPE_CLS",
}


def main() -> None:
    """Serves the model that the first argument describes, until SIGTERM."""
    import xllamacpp

    settings = LlamaSettings(**json.loads(sys.argv[1]))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings.model
    parameters.model_alias = {settings.alias}
    parameters.hostnames = [settings.socket]
    parameters.n_ctx = settings.context
    parameters.n_parallel = settings.parallel
    parameters.cpuparams.n_threads = settings.threads
    parameters.cpuparams_batch.n_threads = settings.threads
    parameters.use_jinja = True
    parameters.ui = False
    parameters.verbosity = _VERBOSITY
    if settings.pooling != "off":
        parameters.embedding = True
        # An input must lie in one batch to be pooled; only a unified cache keeps llama.cpp from cutting
        # batches to equal lengths, which spoils the mean of all inputs but the shortest.
        parameters.kv_unified = True
        parameters.n_batch = parameters.n_ubatch = settings.context // settings.parallel
    if settings.pooling in _POOLING:
        parameters.pooling_type = getattr(xllamacpp.llama_pooling_type, _POOLING[settings.pooling])
    # A build that may use AMX ends in SIGSEGV inside some virtual machines unless it leaves weights unpacked.
    parameters.no_extra_bufts = "AMX_INT8 = 1" in xllamacpp.get_system_info()
    _use_openai_sampling_defaults(parameters)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopped.set())
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:
        sys.exit(f"llama.cpp cannot serve {settings.model}")
    print(f"llama.cpp listens on {server.listening_address}", file=sys.stderr, flush=True)
    stopped.wait()
    # Its destructor waits for answers in flight; the gateway has drained them or given them up.
    os._exit(0)


def _use_openai_sampling_defaults(parameters: Any) -> None:
    """llama.cpp samples at temperature 0.8 from the likeliest 40 tokens unless told otherwise."""
    sampling = parameters.sampling
    sampling.temp, sampling.top_p, sampling.top_k, sampling.min_p = 1.0, 1.0, 0, 0.0


if __name__ == "__main__":
    main()
