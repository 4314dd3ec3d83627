"""Parsers of environment variables: a mapping and a name in, a value out. Only `zone` and `authorities` read the
machine too.

Surrounding blanks do not count, and an empty value counts as none. A value that cannot be used raises
ImproperlyConfigured, which names the variable, the value (unless it may hold a secret) and what is allowed.
"""

import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import dj_database_url
import tzlocal
from django.core.exceptions import ImproperlyConfigured

from batches.scheduling.quiet_hours import QuietHours
from common.addresses import is_address
from common.signing import is_secret

Environment = Mapping[str, str]
LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")

# What Postgres is asked for, unless DATABASE_URL says otherwise. Without it, a wait for a lock has no end, and a lost
# connection is found after hours. The wait is half as long as `common.database.retrying` goes on, so that it tries
# twice. A transaction is a page at most, and is idle in it for the time that a page takes us: one that idles for longer
# is that of a process that was stopped or cut off, whose locks would last for ever. It ends before those who wait for
# its locks give up, and before its lease is over, whose lines it may have locked. The last two are for the server's end
# of a connection by TCP, which may be in the middle of sending.
POSTGRES: dict[str, Any] = {
    "options": " ".join(
        f"-c {setting}"
        for setting in (
            "lock_timeout=10s",
            "idle_in_transaction_session_timeout=15s",
            "tcp_keepalives_idle=30",
            "tcp_user_timeout=60s",
        )
    ),
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def text(environment: Environment, name: str, default: str = "") -> str:
    return environment.get(name, "").strip() or default


def texts(environment: Environment, name: str) -> list[str]:
    """The items between commas, none of them empty."""
    return [item for part in environment.get(name, "").split(",") if (item := part.strip())]


def authorities(environment: Environment, name: str) -> str:
    """The path of a file with certificates of authorities, as PEM; empty if none is given."""
    if path := text(environment, name):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            reason = "it has none" if isinstance(error, ssl.SSLError) else error.strerror
            raise ImproperlyConfigured(
                f"{name}={path!r}: expected a file with certificates of authorities (PEM): {reason}."
            ) from None
    return path


def networks(environment: Environment, name: str) -> list[str]:
    """Addresses and networks such as 10.0.0.0/8, with commas between them."""
    found = texts(environment, name)
    for each in found:
        try:
            ip_network(each)
        except ValueError:
            raise ImproperlyConfigured(
                f"{name}={each!r}: expected addresses and networks such as 10.0.0.5,192.168.0.0/24."
            ) from None
    return found


def whole(environment: Environment, name: str, default: int, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number within the bounds. `default` is not checked."""
    value = text(environment, name)
    if not value:
        return default
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise ImproperlyConfigured(f"{name}={value!r}: expected a whole number from {least} to {most}.")
    return number


def _number(value: str) -> float:
    """The number that the text is; -1 if it is none, which no setting allows."""
    try:
        return float(value)
    except ValueError:
        return -1.0


def seconds(environment: Environment, name: str, *, may_be_0: bool = False) -> float | None:
    """A number of seconds; None if none is given."""
    value = text(environment, name)
    if not value:
        return None
    number = _number(value)
    if not 0 <= number < 10**7 or (number == 0 and not may_be_0):
        allowed = "of seconds, 0 or above" if may_be_0 else "of seconds above 0"
        raise ImproperlyConfigured(f"{name}={value!r}: expected a number {allowed}.")
    return number


def share(environment: Environment, name: str, default: float) -> float:
    """A part of the whole, from 0 to 1."""
    value = text(environment, name)
    if not value:
        return default
    number = _number(value)
    if not 0 <= number <= 1:
        raise ImproperlyConfigured(f"{name}={value!r}: expected a number from 0 to 1, as 0.25 for a quarter.")
    return number


def switch(environment: Environment, name: str, default: bool) -> bool:
    value = text(environment, name)
    if not value:
        return default
    if value not in ("True", "False"):
        raise ImproperlyConfigured(f"{name}={value!r}: expected True or False.")
    return value == "True"


def is_loopback(environment: Environment, name: str, default: str = "") -> bool:
    """Whether who listens at this address is reached from the same machine alone."""
    address = text(environment, name, default)
    if address == "localhost":
        return True
    try:
        return ip_address(address.strip("[]")).is_loopback
    except ValueError:  # a name, or nothing
        return False


def is_of_this_machine(url: str) -> bool:
    """Whether an address leads to whatever machine it is used on: on two machines it is two servers."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host in LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = ip_address(socket.inet_aton(host))  # as 127.1, which is one too
        except OSError:
            return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def choice(environment: Environment, name: str, *allowed: str) -> str:
    """One of these words; the first if none is given."""
    value = text(environment, name, allowed[0])
    if value not in allowed:
        raise ImproperlyConfigured(f"{name}={value!r}: expected {' or '.join(allowed)}.")
    return value


def pairs(environment: Environment, name: str) -> dict[str, str]:
    """`alias=model,…` as a dict from alias to model."""
    found = {}
    for item in texts(environment, name):
        alias, equals, model = (part.strip() for part in item.partition("="))
        if not (alias and equals and model):
            raise ImproperlyConfigured(f"{name}: {item!r} is not of the form alias=model.")
        found[alias] = model
    return found


def url(environment: Environment, name: str, default: str) -> str:
    """A model server's address, without a slash at its end. It must have neither user nor password."""
    value = text(environment, name, default).rstrip("/")
    if not is_address(value):
        raise ImproperlyConfigured(f"{name}={value!r}: expected an address like http://localhost:11434.")
    if "@" in urlsplit(value).netloc:
        # The address is shown by /health and /metrics.
        raise ImproperlyConfigured(
            f"{name} holds a user or a password: put what the server asks for into BACKEND_API_KEY."
        )
    return value


def bare_url(environment: Environment, name: str) -> str:
    """An address of a server, without a path; "" if none is given. It must have neither user nor password."""
    value = text(environment, name).rstrip("/")
    if value and (not is_address(value) or "@" in urlsplit(value).netloc or urlsplit(value).path):
        raise ImproperlyConfigured(
            f"{name} (not shown, it may hold a password): expected an address like https://s3.example.org:9000, "
            "without a user, a password or a path."
        )
    return value


def urls(environment: Environment, name: str, default: str) -> str:
    """The addresses of one model server, or of several with commas between them; each as `url` says."""
    items = texts(environment, name) or [default]
    found = [url({name: item}, name, default) for item in items]
    if len(set(found)) < len(found):
        raise ImproperlyConfigured(f"{name}={','.join(found)!r}: expected each address once.")
    return ",".join(found)


def secret_url(environment: Environment, name: str) -> str:
    """An address as it was typed: a slash at its end can mean something. "" if none is given."""
    value = text(environment, name)
    if value and not is_address(value):
        raise ImproperlyConfigured(
            f"{name} (not shown, it may hold a key): expected an address like https://example.org/hook."
        )
    return value


def signing_secret(environment: Environment, name: str, *, needed_by: str) -> str:
    """A secret as Standard Webhooks spells it. Its errors do not show the value."""
    value = text(environment, name)
    how = "make one with: echo whsec_$(openssl rand -base64 32)"
    if not value:
        raise ImproperlyConfigured(f"{name} is not set, and {needed_by} needs it; {how}")
    if not is_secret(value):
        raise ImproperlyConfigured(f"{name}: expected whsec_ and at least 24 bytes in base64; {how}")
    return value


def zone(environment: Environment, name: str) -> str:
    """A time zone's IANA name; the machine's own zone if none is given, UTC if the machine names none."""
    if value := text(environment, name):
        if not _is_zone(value):
            raise ImproperlyConfigured(f"{name}={value!r}: expected a time zone's IANA name, such as Europe/Berlin.")
        return value
    with suppress(LookupError, ValueError, OSError):  # the machine names several zones, or none that exists
        if (own := tzlocal.get_localzone_name()) and _is_zone(own):
            return own
    return "UTC"


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, LookupError, OSError):  # a path that leads out, an unknown name, a directory
        return False
    return True


def quiet_hours(environment: Environment, name: str, zone: str) -> QuietHours:
    value = text(environment, name)
    try:
        return QuietHours(value, ZoneInfo(zone))
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name}={value!r}: {error}. Expected hours of the day such as 07:00-22:00, past midnight too, several "
            "separated by commas, and not the whole day."
        ) from error


def database(environment: Environment, name: str) -> dict[str, Any]:
    """Django's settings of the database at this URL; {} if none is given.

    Options of the URL (?sslmode=…, ?options=-c…) win over those in POSTGRES.
    """
    value = text(environment, name)
    if not value:
        return {}
    try:
        found: dict[str, Any] = dict(dj_database_url.parse(value, conn_max_age=60, conn_health_checks=True))
    except ValueError as error:
        # Without the value: it may hold a password.
        raise ImproperlyConfigured(f"{name}: expected sqlite:///path or postgres://user:password@host/name.") from error
    if found["ENGINE"] == "django.db.backends.postgresql":
        given = found.get("OPTIONS", {})
        found["OPTIONS"] = POSTGRES | given
        if "options" in given:  # of two equal settings the last one counts
            found["OPTIONS"]["options"] = f"{POSTGRES['options']} {given['options']}"
    return found


def failpoints(environment: Environment, name: str) -> dict[str, tuple[str, int]]:
    """Name -> the action there, and at which time it is done; see common/failpoints.py."""
    found = {}
    for item in texts(environment, name):
        fits = re.fullmatch(r"(\w+):(kill9|kill9_parent|stop|raise|sleep=\d+(?:\.\d+)?)(?:@([1-9]\d*))?", item)
        if fits is None:
            raise ImproperlyConfigured(f"{name}: {item!r} is not of the form name:action or name:action@nth.")
        found[fits[1]] = (fits[2], int(fits[3] or 1))
    return found
