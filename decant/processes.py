"""Child processes that do not outlive the one that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def end_with_parent(sent: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """A `preexec_fn` after which the kernel sends `sent` to the child when its parent dies, however it dies.

    Linux only (prctl(2)); elsewhere a parent that is killed leaves its children to end by themselves.
    """
    parent = os.getpid()
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(sent))
        if os.getppid() != parent:  # it died before the call above
            os.kill(os.getpid(), sent)

    return ask_the_kernel
