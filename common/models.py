"""The models that both apps share: API keys, and the answers that are remembered for an Idempotency-Key."""

import hashlib
import secrets
from typing import ClassVar

from django.db import models
from django.utils import timezone


class ApiKeyManager(models.Manager["ApiKey"]):
    def make(self, name: str, *, is_admin: bool = False) -> tuple["ApiKey", str]:
        """Store a new key and return it with its secret, which cannot be read back later."""
        secret = "sk-" + secrets.token_urlsafe(32)
        return self.create(name=name, digest=_digest(secret), hint=secret[:7], is_admin=is_admin), secret

    def for_secret(self, secret: str) -> "ApiKey | None":
        """The live key with this secret, or None. 32 random bytes need no slow hash; they are looked up by digest."""
        return self.filter(digest=_digest(secret), revoked_at=None).first()


class ApiKey(models.Model):
    """A key for /v1 and /api. Only its SHA-256 is stored. A revoked key stays: without a row no call needs a key."""

    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=8, editable=False, help_text="The first characters, to tell keys apart.")
    is_admin = models.BooleanField(default=False, help_text="May pull, create and delete models of the model server.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    objects: ClassVar[ApiKeyManager] = ApiKeyManager()

    class Meta:
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.hint}…)"

    def revoke(self) -> None:
        type(self).objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=timezone.now())


class RememberedAnswer(models.Model):
    """The answer to a create that came with an Idempotency-Key; kept for a day."""

    scope = models.CharField(max_length=300, help_text="The path, and who asked.")
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of what was asked.")
    body = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["scope", "key"], name="one_answer_for_a_key")]

    def __str__(self) -> str:
        return f"{self.scope} {self.key}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
