"""The engine of `model_server --llama`: the embedded model in a llama.cpp process, a new one for each change of model.

So a swap takes its real time: one process ends, another starts and reads its weights.
"""

import asyncio
import http.client
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from batchserver.supervisor import Child
from benchmarks.engines import Call, Wanted

START_S = 60.0


class Llama:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # One thread for everything, until the end: the kernel ends a child together with the thread that started it.
        self.thread = ThreadPoolExecutor(1)
        self.child: Child | None = None
        self.port = 0

    def load(self, wanted: Wanted, model: str, done: Callable[[], None]) -> None:
        self.loop.run_in_executor(self.thread, self._start, model).add_done_callback(
            lambda started: self._then(started, done)
        )

    def answer(self, wanted: Wanted, call: Call, done: Callable[[bytes], None]) -> None:
        asked = self.loop.run_in_executor(self.thread, self._generate, call)
        asked.add_done_callback(lambda answered: self._then(answered, lambda: done(answered.result())))

    def close(self) -> None:
        self.thread.submit(self._stop).result()

    def _then(self, future: "asyncio.Future[Any]", done: Callable[[], None]) -> None:
        if future.exception() is None:
            done()
        else:
            self.loop.stop()  # llama.cpp is gone, so this server ends too, and the scenario notices

    def _start(self, model: str) -> None:
        self._stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "batchserver.embedded_backend", str(self.port), model]
        self.child = Child("llama.cpp", command, log=Path(os.devnull))
        self.child.start()
        ends_at = time.monotonic() + START_S
        while not self._is_ready():
            if not self.child.is_alive or time.monotonic() > ends_at:
                raise RuntimeError("llama.cpp did not start")
            time.sleep(0.01)

    def _stop(self) -> None:
        if self.child is not None and self.child.process is not None:
            self.child.signal(signal.SIGTERM)
            self.child.process.wait()

    def _is_ready(self) -> bool:
        try:
            return self._ask("GET", "/health", b"")[0] == 200
        except OSError:
            return False

    def _generate(self, call: Call) -> bytes:
        status, content = self._ask("POST", call.path, call.body)
        if status != 200:
            raise RuntimeError(f"llama.cpp answered {status}")
        return content

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
