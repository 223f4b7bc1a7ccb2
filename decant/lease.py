"""Who holds a lease: a name for a process, from which another process can tell that it died."""

import functools
import hashlib
import os
import socket
from pathlib import Path

# One boot of one kernel, and the process ids that this process sees: elsewhere an id is another process's.
_PLACE = (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid"))


def process_owner() -> str:
    """This process's name for its leases: where it runs, its id and its start time."""
    process_id = os.getpid()
    return f"{_here()}:{process_id}:{_start_time(process_id)}"


def is_dead(owner: str) -> bool:
    """Whether `owner` names a process of this machine that is gone; False for any other name."""
    match owner.rsplit(":", 2):
        case [place, process_id, started] if place == _here() and process_id.isdecimal():
            return _start_time(int(process_id)) != started
        case _:
            return False


@functools.cache
def _here() -> str:
    """This host's name, made unlike that of another machine or container which is called the same."""
    boot, namespace = _PLACE
    try:
        place = f"{boot.read_text(encoding='ascii')} {namespace.readlink()}"
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def _start_time(process_id: int) -> str | None:
    """Tells a process from a later one that got its id: None when it is gone, "?" where there is no /proc."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # alive, and somebody else's
    if not Path("/proc/self/stat").exists():
        return "?"
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    # The name in parentheses may hold anything; behind it come the state and, as field 22, the start time.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
