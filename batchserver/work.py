"""Run a worker in this process: `python -m batchserver.work -Q QUEUE -c CHILDREN -n NAME@%h`.

What `celery worker` does with these three options, and with the others as this server wants them, without Celery's
command line: that has a shell of its own, which takes 9 MB of memory in each worker.
"""

import argparse
import sys
from collections.abc import Sequence

# What a worker would import once it has begun. Here it is imported before the first fork, and so is in memory once.
import celery.app.amqp
import celery.app.control
import celery.app.log
import celery.apps.worker
import celery.concurrency.prefork
import celery.events.receiver
import celery.worker.consumer.delayed_delivery
import celery.worker.strategy  # noqa: F401
import kombu.transport.redis  # noqa: F401
from celery.utils.nodenames import default_nodename, host_format

from batchserver.celery import app

# Gossip and mingle are between workers, which need not know each other. The heartbeat is for Flower and its like, which
# are told the interval. Every 2 s it was a tenth of what a worker without work costs.
OPTIONS = {"loglevel": "WARNING", "quiet": True, "without_gossip": True, "without_mingle": True}
HEARTBEAT_EVERY_S = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Work until the order to stop. Ends with SystemExit, which has the worker's exit status."""
    parser = argparse.ArgumentParser("python -m batchserver.work", description="Run a worker of this server.")
    parser.add_argument("-Q", dest="queue", choices=("control", "inference"), required=True)
    parser.add_argument("-c", dest="children", type=int, default=1, help="processes that do the work")
    parser.add_argument("-n", dest="name", help="%%h stands for the name of this machine")
    given = parser.parse_args(arguments)
    worker = app.Worker(
        hostname=host_format(default_nodename(given.name or f"{given.queue}@%h")),
        queues=[given.queue],
        concurrency=given.children,
        pool_cls="prefork",
        heartbeat_interval=HEARTBEAT_EVERY_S,
        **OPTIONS,
    )
    worker.start()
    sys.exit(worker.exitcode)


def load() -> None:
    """Import and make what each worker needs, for workers that are forked from this process."""
    app.loader.init_worker()
    app.finalize()


if __name__ == "__main__":
    given = sys.argv[1:]
    # For SIGHUP, after which Celery calls the interpreter with these: the file itself would not find its neighbours.
    sys.argv = ["-m", "batchserver.work", *given]
    main(given)
