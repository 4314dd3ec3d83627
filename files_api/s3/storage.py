"""Files in a bucket of an S3 server, through django-storages. Imported only where AWS_STORAGE_BUCKET_NAME is set."""

import io
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from boto3.session import Session
from botocore.config import Config
from django.core.files.base import File as Content
from django.utils.http import content_disposition_header
from storages.backends.s3 import S3Storage
from storages.utils import clean_name

from common.disk import trouble
from files_api.s3.bucket import Bucket
from files_api.s3.reading import FIRST_BYTES, RangeReader
from files_api.s3.spans import CachedSpans
from files_api.s3.writing import PartedFile
from files_api.storage import Spans, disk_of_database

# How often a process looks for what there is to sweep.
LIST_AGAIN_AFTER_S = 3600.0


@cache
def _session(key: str | None, secret: str | None, token: str | None) -> Session:
    """One for all clients of a process: it reads megabytes of descriptions of the service."""
    return Session(key, secret, token)


class ObjectFile(Content):  # type: ignore[type-arg]
    """The bytes of an object, to be read. Like a file on disk it can be opened again once it is closed."""

    def __init__(self, make: Callable[[], RangeReader]) -> None:
        """Raises OSError."""
        self._make = make
        super().__init__(io.BufferedReader(make(), FIRST_BYTES))

    def open(self, *_: Any, **__: Any) -> "ObjectFile":
        if self.closed:
            self.file = io.BufferedReader(self._make(), FIRST_BYTES)
        self.seek(0)
        return self


class S3FileStorage(S3Storage):  # type: ignore[misc]  # django-storages has no types
    """Has django-storages' options. It finds the bucket and signs URLs; what is read and written goes by ranges and
    parts (reading, writing), with one client for all threads and errors that are OSErrors (bucket).
    """

    takes_disk = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._requests = Bucket(self.bucket_name, self.endpoint_url or "", self._make_client)
        self._listed: list[str] = []
        self._listed_at = self._looked_for_uploads_at = float("-inf")

    def _make_client(self, config: Config) -> Any:
        style = Config(s3={"addressing_style": self.addressing_style}) if self.addressing_style else Config()
        return _session(self.access_key, self.secret_key, self.security_token).client(
            "s3",
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
            verify=self.verify,
            config=config.merge(style),
        )

    def _key(self, name: str) -> str:
        key: str = self._normalize_name(clean_name(name))
        return key

    def _prefix(self, directory: str) -> str:
        """Of the keys in this directory; "" is the root."""
        key = self._key(directory).rstrip("/")
        return f"{key}/" if key else ""

    # What Django asks

    def _open(self, name: str, mode: str = "rb") -> "Content[bytes]":
        """Raises OSError."""
        if mode != "rb":
            raise ValueError(f"A file is opened to be read, and not with mode {mode!r}")
        return ObjectFile(partial(RangeReader, self._requests, self._key(name)))

    def _save(self, name: str, content: "Content[Any]") -> str:
        if isinstance(content, PartedFile) and content.stored_as == name:
            content.commit()
            return name
        copy = self.incoming(name)
        try:
            for chunk in content.chunks():
                copy.write(chunk)
            copy.commit(replaces=True)
        finally:
            copy.close()
        return name

    def delete(self, name: str) -> None:
        """Safe to run twice. Raises OSError."""
        self._requests.ask("delete_object", Key=self._key(name))

    def exists(self, name: str) -> bool:
        try:
            RangeReader(self._requests, self._key(name)).close()
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        reader = RangeReader(self._requests, self._key(name))
        reader.close()
        return reader.size

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        prefix = self._prefix(name)
        directories: list[str] = []
        files: list[str] = []
        for page in self._requests.pages("list_objects_v2", Prefix=prefix, Delimiter="/"):
            directories += [each["Prefix"][len(prefix) : -1] for each in page.get("CommonPrefixes", ())]
            files += [each["Key"][len(prefix) :] for each in page.get("Contents", ()) if each["Key"] != prefix]
        return directories, files

    # What files_api.storage asks

    def incoming(self, name: str) -> PartedFile:
        return PartedFile(name, self._requests, self._key(name))

    def spans(self, name: str) -> Spans:
        return CachedSpans(partial(RangeReader, self._requests, self._key(name)))

    def free_bytes(self) -> int | None:
        return disk_of_database()

    def trouble(self) -> str:
        try:
            self._look()
        except OSError as error:
            return f"Files cannot be stored: {trouble(error)}"
        return ""

    def directories(self) -> list[str]:
        """As they were an hour ago at the most: a sweep every few seconds needs no newer ones, and a list costs."""
        now = time.monotonic()
        if now >= self._listed_at + LIST_AGAIN_AFTER_S:
            self._listed, self._listed_at = sorted(self.listdir("")[0]), now
        return self._listed

    def written_at(self, directory: str) -> dict[str, float]:
        prefix = self._prefix(directory)
        return {
            f"{directory}/{each['Key'][len(prefix) :]}": each["LastModified"].timestamp()
            for page in self._requests.pages("list_objects_v2", Prefix=prefix)
            for each in page.get("Contents", ())
        }

    def drop_leftovers(self, older_than_s: float) -> None:
        now = time.monotonic()
        if now < self._looked_for_uploads_at + LIST_AGAIN_AFTER_S:
            return
        for page in self._requests.pages("list_multipart_uploads", Prefix=self._prefix("")):
            for each in page.get("Uploads", ()):
                if each["Initiated"].timestamp() < time.time() - older_than_s:
                    self._requests.ask("abort_multipart_upload", Key=each["Key"], UploadId=each["UploadId"])
        self._looked_for_uploads_at = now

    def signed_url(self, name: str, filename: str) -> str:
        asked = {
            "Bucket": self.bucket_name,
            "Key": self._key(name),
            "ResponseContentType": "application/octet-stream",
            "ResponseContentDisposition": content_disposition_header(as_attachment=True, filename=filename),
        }
        sign = self._requests.client().generate_presigned_url
        url: str = self._requests.wait_for(partial(sign, "get_object", Params=asked, ExpiresIn=self.querystring_expire))
        return url

    # For the start and the end

    def close(self) -> None:
        """End the connections of this process."""
        self._requests.close()

    def trouble_at_start(self) -> OSError | None:
        """What is wrong with the bucket, or with what its key may do in it; None if all is right. Writes an object and
        removes it."""
        try:
            self._look()
            name: dict[str, Any] = {"Key": self._key("probe"), "probe": True}
            self._requests.ask("put_object", **name, Body=b"")
            self._requests.ask("get_object", **name)["Body"].close()
            self._requests.ask("delete_object", **name)
        except OSError as error:
            return error
        return None

    def _look(self) -> None:
        """Ask whether the bucket is there, and ours. Raises OSError."""
        self._requests.ask("list_objects_v2", probe=True, Prefix=self._prefix(""), MaxKeys=1)
