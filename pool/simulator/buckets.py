"""What stands behind a cloud storage: a folder here, or a bucket that is read through obstore."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

#: Seconds after which a bucket that does not answer counts as gone.
TIMEOUT = timedelta(seconds=5)
#: Where no region is given. Servers of one's own take any.
REGION = "us-east-1"


class Bucket(Protocol):
    """Objects by their keys. Blocks: use it in a thread."""

    def exists(self) -> bool:
        """Return whether it is there and can be reached."""

    def keys(self, folder: str = "") -> list[str]:
        """Return all keys below a folder, in order."""

    def read(self, key: str) -> bytes:
        """Return an object's content. Raises ``OSError`` where there is none."""


def bucket_at(address: str, environ: Mapping[str, str]) -> Bucket:
    """Return what an address names: ``s3://BUCKET``, or a folder that stands for one.

    A bucket is looked for where the environment says, as AWS's own tools do, and read anonymously
    where it has no key.

    :raises ValueError: there is no such folder, obstore is not installed, or it has a password.
    """
    if "@" in address:
        raise ValueError("credentials belong in the environment, and not in an address")
    scheme, mark, name = address.partition("://")
    if not mark:
        if not Path(address).is_dir():
            raise ValueError(f"{address!r} is no folder")
        return Folder(Path(address))
    if scheme != "s3" or not name.strip("/") or "/" in name.strip("/"):
        raise ValueError(f"{address!r} is not s3://BUCKET")
    try:
        return S3(
            name.strip("/"),
            endpoint=environ.get("AWS_ENDPOINT_URL"),
            region=environ.get("AWS_REGION"),
            key=environ.get("AWS_ACCESS_KEY_ID"),
            secret=environ.get("AWS_SECRET_ACCESS_KEY"),
        )
    except ImportError:
        raise ValueError("buckets need obstore: pip install 'cvat-task-pool[storage]'") from None


class Folder:
    """A folder that stands for a bucket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        return self._path.is_dir()

    def keys(self, folder: str = "") -> list[str]:
        files = (path for path in (self._path / folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(self._path).as_posix() for path in files)

    def read(self, key: str) -> bytes:
        if ".." in PurePosixPath(key).parts:
            raise FileNotFoundError(key)
        return (self._path / key).read_bytes()


class S3:
    """A bucket of Amazon's or of a server that speaks its protocol.

    Read anonymously without a key. Needs obstore (the extra ``slots``).
    """

    def __init__(
        self,
        name: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        key: str | None = None,
        secret: str | None = None,
    ) -> None:
        from obstore.store import S3Store

        # Without a key, none is looked for: this process may have one that is for other things.
        options: dict[str, Any] = {"skip_signature": True}
        if key is not None:
            options = {"access_key_id": key, "secret_access_key": secret or ""}
        if endpoint is not None:
            options["endpoint"] = endpoint
        self._store = S3Store(
            name,
            region=region or REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "connect_timeout": TIMEOUT, "timeout": TIMEOUT},
            retry_config={"max_retries": 1, "retry_timeout": TIMEOUT},
            **options,
        )

    def exists(self) -> bool:
        import obstore
        from obstore.exceptions import BaseError

        try:
            next(iter(obstore.list(self._store, chunk_size=1)), None)
        except (BaseError, OSError):
            return False
        return True

    def keys(self, folder: str = "") -> list[str]:
        import obstore

        found = obstore.list(self._store, prefix=folder.rstrip("/") or None).collect()
        return sorted(meta["path"] for meta in found)

    def read(self, key: str) -> bytes:
        import obstore
        from obstore.exceptions import BaseError

        try:
            return bytes(obstore.get(self._store, key).bytes())
        except BaseError as error:
            raise FileNotFoundError(f"{key}: {type(error).__name__}") from None
