"""Where this code is, a checkout or installed as a package, and where its settings and its state are then.

client/checkout.py has the same for the command line, which imports nothing of this project;
tests/client/test_checkout.py compares the two.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

NAME = "ollama-batch-server"
# The directory that holds the packages.
ROOT = Path(__file__).resolve().parent.parent
# The image is one too.
IS_CHECKOUT = (ROOT / "manage.py").is_file()


def env_file(named: str, environment: Mapping[str, str], *, is_checkout: bool = IS_CHECKOUT) -> Path:
    """The file of settings that ENV_FILE names; else `.env` of the checkout, or of the user where this is installed."""
    if named:
        return Path(named)
    return (ROOT if is_checkout else _home(environment, "XDG_CONFIG_HOME", ".config")) / ".env"


def data_dir(named: str, environment: Mapping[str, str], *, is_checkout: bool = IS_CHECKOUT) -> Path:
    """What DATA_DIR names, a relative one from the checkout or from where the command was typed; else `data` in the
    checkout, or the user's own data directory where this is installed."""
    if not named and not is_checkout:
        return _home(environment, "XDG_DATA_HOME", ".local/share")
    return ((ROOT if is_checkout else Path.cwd()) / Path(named or "data").expanduser()).resolve()


def manage(command: str, data: Path, *, is_checkout: bool = IS_CHECKOUT) -> str:
    """What to type for a management command on the server of this data directory."""
    program = f"{sys.executable} {ROOT / 'manage.py'}" if is_checkout else f"{NAME}-server"
    # DATA_DIR may have come by an option of `serve`, of which another command knows nothing.
    is_default = is_checkout and data == ROOT / "data"
    return f"{'' if is_default else f'DATA_DIR={shlex.quote(str(data))} '}{program} {command}"


def _home(environment: Mapping[str, str], name: str, default: str) -> Path:
    """The user's directory for this program (XDG Base Directory Specification, by which a relative path is ignored)."""
    named = Path(environment.get(name, "").strip())
    return (named if named.is_absolute() else Path.home() / default) / NAME
