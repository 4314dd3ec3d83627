"""The checkout that this client is part of: where its server listens, where its data is. It reads the environment.

The names and defaults are those of batchserver/settings.py, which cannot be imported without Django;
tests/client/test_checkout.py compares the two.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from client.trouble import Trouble

DEFAULT_PORT = 4080


@dataclass(frozen=True)
class Checkout:
    """`root` is None where the client is installed by itself: then there is no server that it could start."""

    root: Path | None
    environment: dict[str, str]

    @classmethod
    def here(cls) -> "Checkout":
        """The checkout that holds this package, with its `.env`; the real environment wins over the file."""
        root = Path(__file__).resolve().parent.parent
        if not (root / "manage.py").is_file():
            return cls(None, dict(os.environ))
        return cls(root, _env_file(root) | os.environ)

    def _text(self, name: str, default: str = "") -> str:
        return self.environment.get(name, "").strip() or default

    @property
    def command(self) -> str:
        """How this program is called, for what it tells a person to type."""
        return "script/batch" if self.root else "ollama-batch"

    @property
    def address(self) -> str:
        """Where the server of this checkout listens. Raises Trouble if PORT is no number."""
        host, port = self._text("HOST", "127.0.0.1"), self._text("PORT", str(DEFAULT_PORT))
        if not port.isdecimal() or not 1 <= int(port) <= 65535:
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
        if self.root is None:
            return []
        data = (self.root / Path(self._text("DATA_DIR", "data")).expanduser()).resolve()
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
        named = Path(self._text("XDG_STATE_HOME"))
        # The specification: a relative path is to be ignored.
        return (named if named.is_absolute() else Path.home() / ".local" / "state") / "ollama-batch"


def _env_file(root: Path) -> dict[str, str]:
    path = Path(os.environ.get("ENV_FILE", "").strip() or root / ".env")
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return {name: value for name, value in dotenv_values(path).items() if value is not None}
