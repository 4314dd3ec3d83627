"""What a test sees of the disk: which files are stored, and a limit that stands for a full one."""

import resource
from contextlib import contextmanager


@contextmanager
def files_end_at(most_bytes):
    """The kernel refuses to write any file beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stored(settings):
    return [path for path in settings.FILES_DIR.rglob("*") if path.is_file()]
