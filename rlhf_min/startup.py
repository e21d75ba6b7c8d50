"""What the scripts do before they import torch: signals, and how idle threads wait.

Ctrl-C and SIGTERM end a script with one line and exit code 130, during its imports too: they take
seconds, and an exception could be lost, or shown as another error, inside a library's start.
"""

import os
import signal
import sys
from pathlib import Path

FIRST = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Threads that wait for work spin for some microseconds, then sleep.  By default they spin for long,
# and on a busy machine small operations wait for threads that have no core: a step of the zoo takes
# 5 times as long.  Without any spinning it takes 1.6 times as long when idle (docs/speed.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if not FIRST:
    os.environ["TQDM_DISABLE"] = "1"
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open as long as the process


def leave(number, frame) -> None:
    """Signal handler: end the process at once.  Nothing has been done that could be lost."""
    if FIRST:
        os.write(2, b"interrupted\n")
    os._exit(130)


def install(handler) -> None:
    """Use this handler for both signals, except where the parent process had one ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


_folder, _program = Path(__file__).parent, getattr(sys.modules["__main__"], "__file__", "")
if Path(_program).parent in (_folder, _folder.parent):
    install(leave)  # the program is a module or a script of ours, not a test or a notebook
