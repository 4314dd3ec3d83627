"""All that lies in DATA_DIR is ours alone: prompts, answers, keys, sessions."""

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def from_now_on() -> None:
    """What this process and its children make is for this user alone: a database and its log, sockets, logs."""
    os.umask(OTHERS)


def make(directory: Path) -> None:
    """Take from everybody else what they may do with the directory and all in it, whatever made it: an older version, a
    backup that was played back, another umask. Safe to run while others write there. Links are not followed, and what
    belongs to another user stays as it is, with a warning."""
    _close(directory)
    for folder, directories, files in os.walk(directory):
        for name in (*directories, *files):
            _close(Path(folder, name))


def _close(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or not mode & OTHERS:
            return
        path.chmod(stat.S_IMODE(mode) & ~OTHERS)
    except FileNotFoundError:
        pass  # a file of somebody who is at work
    except OSError as error:
        logger.warning("%s may be read by other users: %s", path, error.strerror)
