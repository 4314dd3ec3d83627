"""Which settings there are: by the source of settings.py, by .env.example and by docker-compose.yml."""

import ast
import re

from tests.stack import ROOT

# Set by whoever starts a process, not in .env: ENV_FILE names that very file, FAILPOINTS is for tests,
# OLLAMA_BATCH_SERVER is for the command line on other machines, SIGNS_OF_LIFE_FD is a pipe, PUBLISHED_AT is said by
# whoever publishes a container's port, and the others are every program's.
NOT_IN_ENV_FILE = {
    *("ENV_FILE", "FAILPOINTS", "OLLAMA_BATCH_SERVER", "TMPDIR", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "SIGNS_OF_LIFE_FD", "PUBLISHED_AT"),
}


# Read by Docker Compose itself, or passed on by docker-compose.yml as it is.
READ_BY_COMPOSE = {"COMPOSE_PROFILES", "HF_TOKEN"}


def settings_keys() -> set[str]:
    """The environment's keys that settings.py reads, from its source."""
    keys = set()
    for node in ast.walk(ast.parse((ROOT / "batchserver" / "settings.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("env."):
            environment, name = node.args[:2]
            assert (ast.unparse(environment), type(name)) == ("environ", ast.Constant), ast.unparse(node)
            keys.add(name.value)
        elif isinstance(node, ast.Subscript | ast.Attribute):
            assert ast.unparse(node.value) not in ("environ", "os.environ"), "it reads the environment by env alone"
    return keys


def client_keys() -> set[str]:
    """The environment's keys that the command line reads, from its source."""
    source = (ROOT / "client" / "checkout.py").read_text()
    return set(re.findall(r'_(?:text|home)\("([A-Z0-9_]+)"', source))


def interpolated() -> dict[str, str]:
    """What docker-compose.yml takes from .env for itself, with its defaults."""
    return dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))


def documented() -> dict[str, str]:
    """Keys and values of .env.example, where every key is commented out."""
    pairs = re.findall(r"^# ([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(pairs) == len(dict(pairs)), "a key stands there twice"
    return dict(pairs)
