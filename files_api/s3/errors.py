"""What an S3 server says, or does not say, as an OSError with a sentence for a person: the only place that knows."""

import errno
from ssl import SSLCertVerificationError

from botocore.exceptions import (
    ClientError,
    ConnectionError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.ssl_match_hostname import CertificateError  # noqa: TID251  (of botocore's, as in bucket.py)

from common.disk import RemoteError, RemoteFileMissing

_KEYS = "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "Set AWS_S3_REGION_NAME to the region of the bucket"
_UP = "See that it is up, and that AWS_S3_ENDPOINT_URL is its address"
_WAIT = "See that it is in order, and not asked for more than it can do"
_MISSING = "See that AWS_STORAGE_BUCKET_NAME and AWS_LOCATION are those of this database, or restore the bucket"
_ROOM = "Make room there, or raise its quota"

# By the code of the error: errno, what is wrong, what to do.
_CODES = {
    "NoSuchBucket": (errno.ENODEV, "has no such bucket", "Create the bucket, or correct AWS_STORAGE_BUCKET_NAME"),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "NotSignedUp"),
        (errno.EACCES, "refuses the key or the secret", _KEYS),
    ),
    **dict.fromkeys(
        ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired"),
        (errno.EACCES, "refuses the session token", "Renew AWS_SESSION_TOKEN with its key and its secret"),
    ),
    "RequestTimeTooSkewed": (errno.EACCES, "has another time than this machine", "Set the clocks right"),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        (errno.ENODEV, "has the bucket in another region", _REGION),
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"),
        (errno.ENOSPC, "has no room", _ROOM),
    ),
    "EntityTooLarge": (errno.EFBIG, "takes no object as large as this", "Set MAX_FILE_BYTES to what it takes"),
    **dict.fromkeys(
        ("PreconditionFailed", "ConditionalRequestConflict"),
        (errno.ESTALE, "has another object under this name by now", _WAIT),
    ),
}
_FORBIDDEN = (
    errno.EACCES,
    "forbids it to this key",
    "Let the key list the bucket, and read, write and delete in it (docs/s3.md)",
)
_SAID_NOTHING = (
    (NoCredentialsError, errno.EACCES, "asks for a key, and none is set", _KEYS),
    (PartialCredentialsError, errno.EACCES, "asks for a key and a secret, and only one is set", _KEYS),
    (CredentialRetrievalError, errno.EACCES, "asks for a key, and the role of this machine gives none", _KEYS),
    (ParamValidationError, errno.ENODEV, "cannot have a bucket of this name", "Correct AWS_STORAGE_BUCKET_NAME"),
    (ConnectTimeoutError, errno.ETIMEDOUT, "does not answer", _UP),
    (ReadTimeoutError, errno.ETIMEDOUT, "does not answer in time", _UP),
    (SSLError, errno.ENOTCONN, "is not reached by TLS", _UP),
    (ProxyConnectionError, errno.ENOTCONN, "is not reached by the proxy", _UP),
    (ConnectionError, errno.ENOTCONN, "is not reached", _UP),
    (HTTPClientError, errno.EIO, "broke the connection off", _UP),
    (TimeoutError, errno.ETIMEDOUT, "does not answer in time", _UP),
)

# What to do about a certificate, by OpenSSL's number of what is wrong with it.
_AUTHORITY = "Let AWS_S3_VERIFY name a file with the authority that signed it"
_NAME = "Let AWS_S3_ENDPOINT_URL have a name that is in it"
_CERTIFICATES = dict.fromkeys((9, 10), "Renew it, or set the clocks right") | dict.fromkeys((62, 64), _NAME)


def code_of(error: BaseException) -> str:
    """The code of what the server said, or the HTTP status as text; empty if it said nothing."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status_of(error: BaseException) -> int:
    """The HTTP status of what the server said; 0 if it said nothing."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def translated(error: BaseException, where: str) -> OSError:
    """The OSError for an error of botocore or urllib3, or for a TimeoutError. `where` names the storage, and begins the
    sentence.

    No text of the server's own is in it, which may hold a key; its code is.
    """
    if isinstance(error, ClientError):
        code, status = code_of(error), status_of(error)
        if code in ("NoSuchKey", "NoSuchUpload"):
            return RemoteFileMissing(errno.ENOENT, f"{where} does not have the object", _MISSING, code)
        number, what, advice = _CODES.get(code) or _by_status(status)
        return RemoteError(number, f"{where} {what} ({code or status})", advice, code)
    if refusal := _of_certificate(error):
        reason, advice = refusal
        what = f"{where} has no certificate that is trusted here ({reason.rstrip('.')})"
        return RemoteError(errno.EACCES, what, advice)
    for kind, number, what, advice in _SAID_NOTHING:
        if isinstance(error, kind):
            return RemoteError(number, f"{where} {what}", advice)
    return RemoteError(errno.EIO, f"{where} cannot be asked ({type(error).__name__})", _UP)


def _of_certificate(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with the server's certificate, and what to do: from below the errors that botocore makes of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SSLCertVerificationError):
            return cause.verify_message, _CERTIFICATES.get(cause.verify_code, _AUTHORITY)
        if isinstance(cause, CertificateError):  # urllib3 compares names by itself
            return str(cause), _NAME
        cause = cause.__cause__ or cause.__context__
    return None


def _by_status(status: int) -> tuple[int, str, str]:
    if status in (401, 403):
        return _FORBIDDEN
    if status == 507:
        return errno.ENOSPC, "has no room", _ROOM
    if status == 404:
        return errno.ENODEV, "does not know what it is asked for", _UP
    if status in (301, 307):
        return errno.ENODEV, "has the bucket in another region", _REGION
    if status in (429, 503):
        return errno.EAGAIN, "is overloaded", _WAIT
    return errno.EIO, "fails", _WAIT
