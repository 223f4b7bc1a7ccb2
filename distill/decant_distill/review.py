"""`decant review`: a page on this machine to read labels with their reasoning: accept, edit or reject."""

import getpass
import secrets
import socket
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import uvicorn
from pydantic import Field

from decant.config import Config, InputPath, OptionalInputPath
from decant.errors import ConfigError
from decant.files import write_json
from decant.store import RequestStore
from decant_distill.review_app import Desk, build_app
from decant_distill.review_index import LabelIndex, read_dropped
from decant_distill.reviewed import store_beside

_LOOPBACK = "127.0.0.1"


class ReviewConfig(Config):
    """Which labels are looked at, and where the decisions go."""

    positional: ClassVar[tuple[str, ...]] = ("labels",)

    labels: InputPath = Field(description="label file that `decant label` wrote")
    store: str | None = Field(
        default=None, description="request store for the decisions; LABELS.store.sqlite when left out"
    )
    dropped: OptionalInputPath = Field(
        default=None, description="curation.dropped.jsonl of `decant curate`, to look at what each rule took"
    )
    reviewer: str | None = Field(
        default=None, description="who decides, for the record; the account's name when left out"
    )
    port: int = Field(default=0, ge=0, le=65535, description="port on 127.0.0.1; 0 takes a free one")
    browser: bool = Field(default=False, description="open the page in the default browser")
    ready_file: Path | None = Field(default=None, description="write the page's address here as JSON")


CONFIG = ReviewConfig


def run(config: ReviewConfig) -> None:
    """Serves the page until it is interrupted; every decision is in the store at once."""
    index = LabelIndex.read(config.labels, read_dropped(config.dropped) if config.dropped else None)
    token = secrets.token_urlsafe(24)
    where = config.store or store_beside(config.labels)
    with RequestStore.open(where) as requests, _listen(config.port) as listener:
        app = build_app(Desk(index, requests, reviewer=config.reviewer or getpass.getuser()), token=token)
        url = f"http://{_LOOPBACK}:{listener.getsockname()[1]}/{token}/"
        print(f"{len(index.items)} labels of {config.labels}; decisions go to {where}")
        print(f"review them at {url} (Ctrl-C ends)", flush=True)
        if config.ready_file is not None:
            write_json(config.ready_file, {"url": url})
        if config.browser:
            webbrowser.open(url)
        server = uvicorn.Server(
            uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        )
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        print(f"what was decided is kept in {where}")


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port}: {error.strerror}; give another one, or 0 for a free one") from None
    return listener
