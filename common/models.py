"""The models that both apps share: owners, their API keys, and the answers remembered for an Idempotency-Key."""

import hashlib
import secrets
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timedelta
from typing import ClassVar

from django.conf import settings
from django.db import Error, models
from django.db.models import Q

from common import database
from common.database import not_waiting


class OwnerManager(models.Manager["Owner"]):
    def first_one(self) -> "Owner":
        """Whose everything is that was made before there were owners, or without a key."""
        return self.get(pk=Owner.FIRST)


class Owner(models.Model):
    """A person or a team. Files, uploads, batches and keys have one owner each, who sees no one else's.

    A limit that is empty is that of the settings (OWNER_MAX_…); 0 is no limit.
    """

    name = models.CharField(max_length=100, unique=True)
    created_at = models.DateTimeField(default=database.now, editable=False)

    max_stored_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="Of files, and of uploads.")
    max_active_batches = models.PositiveIntegerField(null=True, blank=True, help_text="Batches that are not over.")
    max_open_lines = models.PositiveIntegerField(null=True, blank=True, help_text="Lines of these without a result.")
    max_requests_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text="Calls of the API.")
    max_streams = models.PositiveIntegerField(
        null=True, blank=True, help_text="Requests that are passed through to a model at once."
    )

    webhook_url = models.CharField(max_length=2000, default="", blank=True, help_text="Told of the owner's batches.")
    webhook_secret = models.CharField(max_length=255, default="", blank=True, help_text="Signs what is told.")

    requests_until = models.FloatField(
        default=0, editable=False, help_text="Unix time until which the requests so far use the rate up."
    )
    turn_at = models.DateTimeField(null=True, editable=False, help_text="When a turn of its lines last began.")
    step_at = models.DateTimeField(null=True, editable=False, help_text="When a step of its batches last began.")

    objects: ClassVar[OwnerManager] = OwnerManager()

    FIRST = 1

    def __str__(self) -> str:
        return self.name

    def limit(self, name: str) -> int | None:
        """The owner's limit of this name, such as "stored_bytes", or that of the settings; None: no limit."""
        own: int | None = getattr(self, f"max_{name}")
        return (getattr(settings, f"OWNER_MAX_{name.upper()}") if own is None else own) or None

    def lock(self) -> None:
        """Let others who count what the owner has wait until the end of the caller's transaction."""
        Owner.objects.select_for_update().filter(pk=self.pk).first()


def owner_field() -> "models.ForeignKey[Owner, Owner]":
    """The owner of a row. A worker of the version before knows no owners: its rows are the first owner's."""
    return models.ForeignKey(
        Owner,
        models.PROTECT,
        db_constraint=False,
        db_index=False,
        default=Owner.FIRST,
        db_default=Owner.FIRST,  # type: ignore[arg-type]  # the key of an owner will do
        related_name="+",
    )


class Scope(models.TextChoices):
    """What a key is for."""

    BATCHES = "batches"  # files, uploads and batches
    CHAT = "chat"  # requests that are passed through to a model
    ADMIN = "admin"  # what concerns everybody: models of the model server, the pause of all batches, /metrics


class ApiKeyManager(models.Manager["ApiKey"]):
    def make(
        self,
        name: str,
        *,
        owner: Owner | None = None,
        scopes: Collection[Scope] = (Scope.BATCHES, Scope.CHAT),
        expires_at: datetime | None = None,
    ) -> tuple["ApiKey", str]:
        """Store a new key, of the first owner if none is named, and return it with its secret, which cannot be read
        back later."""
        key = self.model(
            name=name,
            owner=owner or Owner.objects.first_one(),
            for_batches=Scope.BATCHES in scopes,
            for_chat=Scope.CHAT in scopes,
            is_admin=Scope.ADMIN in scopes,
            expires_at=expires_at,
        )
        secret = key.make_secret()
        key.save(force_insert=True)
        return key, secret

    def for_secret(self, secret: str) -> "ApiKey | None":
        """The key with this secret that is not revoked, expired or not, with its owner; or None. 32 random bytes need
        no slow hash; they are looked up by digest."""
        return self.filter(digest=digest_of(secret), revoked_at=None).select_related("owner").first()

    def live(self) -> models.QuerySet["ApiKey"]:
        """The keys that are taken: neither revoked nor expired."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=database.now()), revoked_at=None)

    def by_digest(self) -> "dict[str, ApiKey] | None":
        """The keys that are taken, by their digests; None while there is no key at all."""
        return {key.digest: key for key in self.live()} if self.exists() else None


class ApiKey(models.Model):
    """A key for /v1 and /api. Only its SHA-256 is stored. A revoked key stays: without a row no call needs a key."""

    name = models.CharField(max_length=100)
    owner = owner_field()
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=8, editable=False, help_text="The first characters, to tell keys apart.")
    # The scopes. Keys from before there were any were for all but what an administrator does.
    for_batches = models.BooleanField(default=True, db_default=True, help_text="Files, uploads and batches.")
    for_chat = models.BooleanField(default=True, db_default=True, help_text="Requests to a model.")
    is_admin = models.BooleanField(default=False, help_text="May pull, create and delete models of the model server.")
    created_at = models.DateTimeField(default=database.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Not taken any more from then on; empty: never.")
    last_used_at = models.DateTimeField(null=True, editable=False, help_text="To the minute.")
    revoked_at = models.DateTimeField(null=True, editable=False)

    objects: ClassVar[ApiKeyManager] = ApiKeyManager()

    USED_TO = timedelta(minutes=1)

    class Meta:
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.hint}…)"

    def make_secret(self) -> str:
        """Give a key that is not stored yet its secret, which cannot be read back later."""
        secret = "sk-" + secrets.token_urlsafe(32)
        self.digest, self.hint = digest_of(secret), secret[:7]
        return secret

    @property
    def scopes(self) -> list[Scope]:
        have = {Scope.BATCHES: self.for_batches, Scope.CHAT: self.for_chat, Scope.ADMIN: self.is_admin}
        return [scope for scope, has in have.items() if has]

    def note_use(self) -> None:
        """Note that the key is used now. Written once in USED_TO, and not at all while the database is busy or takes no
        writes: no request waits or fails for it."""
        now = database.now()
        if self.last_used_at is not None and now - self.USED_TO < self.last_used_at <= now:
            return
        with suppress(Error), not_waiting():
            ApiKey.objects.filter(pk=self.pk).update(last_used_at=now)

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= database.now()

    def revoke(self) -> None:
        type(self).objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=database.now())


class RememberedAnswer(models.Model):
    """The answer to a create that came with an Idempotency-Key; kept for a day."""

    KEPT_FOR = timedelta(days=1)

    scope = models.CharField(max_length=300, help_text="The path, and who asked.")
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of what was asked.")
    body = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=database.now, db_index=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["scope", "key"], name="one_answer_for_a_key")]

    def __str__(self) -> str:
        return f"{self.scope} {self.key}"

    @classmethod
    def forget_old(cls) -> None:
        """Delete those that are older than KEPT_FOR. Safe to run twice."""
        cls.objects.filter(created_at__lt=database.now() - cls.KEPT_FOR).delete()


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
