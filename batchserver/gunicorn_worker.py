"""gunicorn's worker with threads, which gives signs of life."""

from gunicorn.workers.gthread import ThreadWorker

from common import signs_of_life


class Worker(ThreadWorker):  # type: ignore[misc]
    """Gives signs while its loop goes round, which takes connections and hands them to threads.

    The loop goes round however long requests take, and when all threads are busy. The signs are those of gunicorn's
    main process, which has to start a worker that ended again: if it does not, there are none.
    """

    def run(self) -> None:
        from django.conf import settings  # of the application, which is loaded by now

        signs_of_life.give_to(settings.SIGNS_OF_LIFE_FD, of=self.ppid)
        signs_of_life.begin()
        super().run()

    def notify(self) -> None:
        """Called by the loop, each second at least."""
        super().notify()
        signs_of_life.alive()
