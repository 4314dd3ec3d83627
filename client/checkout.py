"""The server that is this client's own: where it listens, where its data is. It reads the environment.

The names and defaults are those of batchserver/settings.py, installation.py and version.py, and nothing of the server
is imported here; tests/client/test_checkout.py compares the two.
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from client.trouble import Trouble

DEFAULT_PORT = 4080
SERVER = "ollama-batch-server"
UNRELEASED, UNKNOWN = "Unreleased", "0+unknown"


@dataclass(frozen=True)
class Checkout:
    """`root` is None where the client is installed as a package: then the server is one that the user starts."""

    root: Path | None
    environment: dict[str, str]

    @classmethod
    def here(cls) -> "Checkout":
        """The checkout that holds this package, or the user's installation, with its `.env`; the real environment wins
        over the file."""
        root: Path | None = Path(__file__).resolve().parent.parent
        if root is not None and not (root / "manage.py").is_file():
            root = None
        home = cls(root, dict(os.environ))
        return cls(root, home._env_file() | os.environ)

    def _text(self, name: str, default: str = "") -> str:
        return self.environment.get(name, "").strip() or default

    @property
    def command(self) -> str:
        """How this program is called, for what it tells a person to type."""
        return "script/batch" if self.root else "ollama-batch"

    @property
    def server_command(self) -> str:
        return "script/server" if self.root else SERVER

    @property
    def version(self) -> str:
        """That of the checkout by its changelog, or of the package; `0+unknown` without either."""
        try:
            if self.root is None:
                return metadata.version(SERVER)
            changelog = (self.root / "CHANGELOG.md").read_text(encoding="utf-8")
        except (OSError, metadata.PackageNotFoundError):
            return UNKNOWN
        newest, *others = re.findall(r"^## (\S+)", changelog, re.MULTILINE) or [UNKNOWN]
        if newest == UNRELEASED:
            return f"{others[0]}+unreleased" if others else UNKNOWN
        return str(newest)

    @property
    def address(self) -> str:
        """Where the own server listens. Raises Trouble if PORT is no number."""
        host, port = self._text("HOST", "127.0.0.1"), self._text("PORT", str(DEFAULT_PORT))
        if not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
            raise Trouble(f"PORT={port!r}: expected a whole number from 1 to 65535.")
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{f'[{host}]' if ':' in host else host}:{int(port)}"

    @property
    def api_key(self) -> str:
        return self._text("OPENAI_API_KEY")

    @property
    def certificates(self) -> str | None:
        """A file of certificates to trust, as other clients are told it; None for those that come with requests."""
        return self._text("REQUESTS_CA_BUNDLE") or self._text("SSL_CERT_FILE") or None

    @cached_property
    def data_dirs(self) -> list[Path]:
        """DATA_DIR, and the one of the stand-in model inside it."""
        named = self._text("DATA_DIR")
        if not named and self.root is None:
            data = self._home("XDG_DATA_HOME", ".local/share") / SERVER
        else:
            data = ((self.root or Path.cwd()) / Path(named or "data").expanduser()).resolve()
        return [data, data / "embedded"]

    def data_dir_of(self, instance: str | None) -> Path | None:
        """Which directory of ours belongs to the server that calls itself `instance`; None if it is not our server."""
        for directory in self.data_dirs:
            try:
                kept = (directory / "instance_id").read_text().strip()
            except OSError:  # not there, or another user's
                continue
            if instance and kept == instance:
                return directory
        return None

    @property
    def state_dir(self) -> Path:
        """Where this client keeps what it knows of earlier runs (XDG Base Directory Specification)."""
        return self._home("XDG_STATE_HOME", ".local/state") / "ollama-batch"

    def _home(self, name: str, default: str) -> Path:
        named = Path(self._text(name))
        # The specification: a relative path is to be ignored.
        return named if named.is_absolute() else Path.home() / default

    def _env_file(self) -> dict[str, str]:
        path = Path(self._text("ENV_FILE") or (self.root or self._home("XDG_CONFIG_HOME", ".config") / SERVER) / ".env")
        if not path.is_file():
            return {}
        from dotenv import dotenv_values

        return {name: value for name, value in dotenv_values(path).items() if value is not None}
