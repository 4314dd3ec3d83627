"""Places between two steps of the server at which a test lets a process die, stop or fail.

    FAILPOINTS=after_claim:kill9,after_answer:stop@3

The action is done when a process reaches the place for the nth time (the first, unless given), and by one process
alone: that process leaves a file of that name with its pid in DATA_DIR/failpoints, so that its successor passes by.

    kill9         SIGKILL to this process; in a worker's pool that is a child
    kill9_parent  SIGKILL to its parent first: the worker, or gunicorn's arbiter
    stop          SIGSTOP to this process, until it gets SIGCONT
    sleep=1.5     wait 1.5 seconds
    raise         RuntimeError

Without the setting `reach` is an empty function.
"""

import os
import signal
import threading
import time
from collections import Counter

from django.conf import settings

_guard = threading.Lock()
_times: Counter[str] = Counter()


def _count_and_act(name: str) -> None:
    if name not in settings.FAILPOINTS:
        return
    action, nth = settings.FAILPOINTS[name]
    with _guard:
        _times[name] += 1
        if _times[name] != nth or not _is_first(name):
            return
    _act(name, action)


def _is_first(name: str) -> bool:
    directory = settings.DATA_DIR / "failpoints"
    directory.mkdir(exist_ok=True)
    try:
        with (directory / name).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _act(name: str, action: str) -> None:
    kind, _, seconds = action.partition("=")
    match kind:
        case "kill9_parent":
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            # To this thread: another thread may take a signal to the process, while this one runs on.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        case "sleep":
            time.sleep(float(seconds))
        case _:
            raise RuntimeError(f"failpoint {name}")


def _pass(name: str) -> None:
    pass


reach = _count_and_act if settings.FAILPOINTS else _pass
