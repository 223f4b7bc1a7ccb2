"""A PostgreSQL server of the tests' own: on a Unix socket, with a password, in a folder that goes with it."""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PASSWORD = "s3cret-of-tests"  # a throw-away server, reachable through its socket alone
_SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=60")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """One running server."""

    programs: Path
    folder: Path
    as_user: tuple[str, ...] = field(default=())

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        """The address of one of its databases."""
        return f"postgresql://postgres:{password}@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The address of an empty database."""
        name = f"store_{next(_numbers)}"
        self.run("createdb", "--host", str(self.folder), "--username", "postgres", name)
        return self.url(name)

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's own programs, as the user who may run them."""
        _run([*self.as_user, str(self.programs / program), *arguments])


def programs() -> Path | None:
    """Where PostgreSQL's programs are: where Debian puts them, or together on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.insert(0, Path(on_path).resolve().parent)
    needed = ("initdb", "pg_ctl", "createdb", "psql")
    whole = [folder for folder in found if all((folder / one).exists() for one in needed)]
    return whole[-1] if whole else None


@contextmanager
def running(where: Path) -> Generator[PostgresServer]:
    """A server for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="decant-postgres-"))
    server = PostgresServer(where, folder, _as_user(folder))
    password = folder / "password"
    password.write_text(PASSWORD, encoding="utf-8")
    password.chmod(0o644)
    cluster = str(folder / "cluster")
    secret = ["--auth=scram-sha-256", "--pwfile", str(password)]
    options = " ".join(f"-c {setting}" for setting in _SETTINGS)
    try:
        server.run("initdb", "--pgdata", cluster, "--username=postgres", "--no-sync", *secret)
        addresses = f"-k {folder} -c listen_addresses= {options}"
        log = str(folder / "log")
        server.run("pg_ctl", "start", "--pgdata", cluster, "--wait", "--log", log, "--options", addresses)
        try:
            yield server
        finally:
            server.run("pg_ctl", "stop", "--pgdata", cluster, "--mode=immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_user(folder: Path) -> tuple[str, ...]:
    """PostgreSQL refuses to run as root: then the user that its package made runs it."""
    if os.geteuid() != 0:
        return ()
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
