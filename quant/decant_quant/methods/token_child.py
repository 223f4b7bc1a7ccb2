# xllamacpp is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
"""Run as a child: `FILE.gguf`, a JSON list of texts on stdin; prints llama.cpp's token ids of each."""

import http.client
import json
import os
import sys
from urllib.parse import urlsplit


def main() -> None:
    """Loads the file in llama.cpp's server and asks it text by text."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_ctx, parameters.n_parallel = 256, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.ui, parameters.warmup, parameters.verbosity = False, False, 0
    parameters.no_extra_bufts = True
    texts: list[str] = json.loads(sys.stdin.buffer.read())
    server = xllamacpp.Server(parameters)
    address = urlsplit(server.listening_address)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60.0)
    found: list[list[int]] = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True})
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        found.append(json.loads(connection.getresponse().read())["tokens"])
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    # The server's destructor waits for nothing that matters here.
    os._exit(0)


if __name__ == "__main__":
    main()
