"""openai-python's own tests of the resources that we serve, against a whole server."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import openai

from tests.conftest import needs
from tests.stack import ROOT

SUITE = Path(sys.prefix) / "openai-suite" / f"openai-{openai.__version__}"
TESTS = [*(f"test_{name}.py" for name in ("batches", "files", "models", "uploads")), "uploads"]

NO_DELETE = "Not allowed to DELETE on /v1/models/"
NO_MD5 = "but got 'md5'"  # it completes an upload with a checksum that no content has

# What fails, in every mode of the client, and in which words: the README lists the same differences.
EXPECTED_FAILURES = {
    "test_models.py::TestModels::test_method_delete": NO_DELETE,
    "test_models.py::TestModels::test_raw_response_delete": NO_DELETE,
    "test_models.py::TestModels::test_streaming_response_delete": NO_DELETE,
    "test_models.py::TestAsyncModels::test_method_delete": NO_DELETE,
    "test_models.py::TestAsyncModels::test_raw_response_delete": NO_DELETE,
    "test_models.py::TestAsyncModels::test_streaming_response_delete": NO_DELETE,
    "test_uploads.py::TestUploads::test_method_complete_with_all_params": NO_MD5,
    "test_uploads.py::TestAsyncUploads::test_method_complete_with_all_params": NO_MD5,
}

NO_MOCK = "aiohttp client is not compatible with respx2_mock"

EXPECTED_SKIPS = {
    "test_files.py::TestAsyncFiles::test_method_content[aiohttp]": NO_MOCK,
    "test_files.py::TestAsyncFiles::test_raw_response_content[aiohttp]": NO_MOCK,
    "test_files.py::TestAsyncFiles::test_streaming_response_content[aiohttp]": NO_MOCK,
}


def test_openai_pythons_own_tests_pass(stack, fake, tmp_path):
    needs(SUITE.is_dir(), f"{SUITE} (script/test makes it)")
    fake.models = ["gpt-6-astra"]
    server = stack(OLLAMA_BASE_URL=fake.url)
    outcomes = tmp_path / "outcomes.json"
    plugins = ["-p", "openai_suite_plugin", *(f"-pno:{name}" for name in ("django", "randomly", "cacheprovider"))]
    result = subprocess.run(
        # Its own configuration, but for the options that it gives pytest.
        [
            sys.executable,
            "-m",
            "pytest",
            *plugins,
            "--override-ini=addopts=--tb=short",
            f"--outcomes={outcomes}",
            *(f"tests/api_resources/{each}" for each in TESTS),
        ],
        cwd=SUITE,
        env=os.environ
        | server.environment
        | {
            "PYTHONPATH": str(ROOT / "tests" / "clients"),
            "DJANGO_SETTINGS_MODULE": "batchserver.settings",
            "TEST_API_BASE_URL": f"{server.base}/v1",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert outcomes.exists(), result.stdout + result.stderr

    found = defaultdict(dict)
    for test, (outcome, text) in json.loads(outcomes.read_text()).items():
        found[outcome][test.removeprefix("tests/api_resources/")] = text
    wrong = [f"{test}: {text}" for test, text in found["failed"].items() if not is_expected(test, text)]
    assert not wrong, "\n\n".join(wrong[:5])
    assert {test.partition("[")[0] for test in found["passed"]}.isdisjoint(EXPECTED_FAILURES)
    assert found["skipped"].keys() == EXPECTED_SKIPS.keys()
    assert all(reason in found["skipped"][test] for test, reason in EXPECTED_SKIPS.items())
    assert {outcome: len(tests) for outcome, tests in found.items()} == {"passed": 317, "failed": 20, "skipped": 3}


def is_expected(test, text):
    words = EXPECTED_FAILURES.get(test.partition("[")[0])
    return words is not None and words in text
