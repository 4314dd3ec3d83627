"""Secrets that sign webhooks, as Standard Webhooks spells them: whsec_, and the key in base64. Pure.

Without `whsec_`, libraries differ on what the key is.
"""

import base64
import secrets

PREFIX, LEAST_BYTES = "whsec_", 24


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: str) -> bytes:
    """The key in the secret; empty if it is spelt in any other way."""
    if not secret.startswith(PREFIX):
        return b""
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        return b""


def is_secret(secret: str) -> bool:
    return len(key_of(secret)) >= LEAST_BYTES
