"""A bucket of S3, Google Cloud Storage or Azure, reached through obstore.

obstore finds credentials and endpoint itself, in the environment or from the machine it is on.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from pool.errors import ConfigError, PoolError

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, RetryConfig, S3Store

#: What is to be installed for it.
EXTRA: Final = "cvat-task-pool[storage]"
#: Where obstore finds the address of a server that is not the cloud's own.
_ENDPOINTS: Final = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    *("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
)

#: The process that has the threads of obstore. Those are not in a fork of it, where a call would
#: never return.
_owner: int | None = None


class Bucket:
    """The objects of a bucket. All threads share its connections; nothing is opened before the
    first call.

    ``timeout`` is how many seconds a call may take, ``retry_for`` for how many one that fails in a
    way that passes is tried again. What the server says is raised as ``unavailable``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retry_for: float,
        unavailable: Callable[[str], PoolError],
    ) -> None:
        """:param url: without a path: ``s3://bucket``, ``gs://bucket`` or ``az://container``."""
        self.url = url
        self._timeout = timeout
        self._retry_for = retry_for
        self._unavailable = unavailable
        self._client: S3Store | GCSStore | AzureStore | None = None

    @contextmanager
    def reported(self, *, missing: bool = False) -> Iterator[S3Store | GCSStore | AzureStore]:
        """Raise what the server says as an error of the pool; with ``missing``, an object that is
        not there as FileNotFoundError.

        :raises ConfigError: obstore is not installed.
        """
        client = self._connected()
        from obstore.exceptions import BaseError

        try:
            yield client
        except (BaseError, OSError, ValueError) as error:
            why = _why(error)
            if missing and isinstance(error, FileNotFoundError) and "NoSuchBucket" not in why:
                raise FileNotFoundError(errno.ENOENT, "no such object", self.url) from None
            # Without its cause, whose text can have a signed address.
            raise self._unavailable(f"{self.url}: {why}") from None

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects. Those that are missing are no error."""
        with self.reported() as client:
            import obstore

            try:
                obstore.delete(client, paths)
            except FileNotFoundError:
                # Only S3 deletes many at once, and says nothing of those that are missing.
                for path in paths:
                    with suppress(FileNotFoundError):
                        obstore.delete(client, path)

    def _connected(self) -> S3Store | GCSStore | AzureStore:
        global _owner
        if _owner is None:
            _owner = os.getpid()
        elif _owner != os.getpid():
            raise self._unavailable(
                f"{self.url}: a process that was forked after a bucket was in use cannot reach it; "
                "fork before, or start processes by spawn"
            )
        if self._client is None:
            # Two threads may make one at once; the last stays.
            self._client = self._make_client()
        return self._client

    def _make_client(self) -> S3Store | GCSStore | AzureStore:
        try:
            # Only here, since it is not installed where it is not used.
            from obstore.exceptions import BaseError
            from obstore.store import AzureStore, GCSStore, S3Store
        except ImportError as error:
            raise ConfigError(f"a bucket needs obstore; pip install '{EXTRA}'") from error
        kinds: dict[str, type[S3Store | GCSStore | AzureStore]] = {
            "s3": S3Store,
            "gs": GCSStore,
            "az": AzureStore,
        }
        retries: RetryConfig = {
            "max_retries": 2,
            "retry_timeout": timedelta(seconds=self._retry_for),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(milliseconds=500),
                "base": 2,
            },
        }
        # Options that are given here hide those of the environment, such as AWS_ALLOW_HTTP.
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        try:
            return kinds[self.url.partition("://")[0]].from_url(
                self.url,
                client_options={
                    "timeout": timedelta(seconds=self._timeout),
                    "connect_timeout": timedelta(seconds=2),
                    "allow_http": plain,
                },
                retry_config=retries,
            )
        except (BaseError, OSError, ValueError) as error:
            raise self._unavailable(f"{self.url}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """Return what the server has said, or else what obstore says, without addresses: a signed one
    is as good as a password."""
    text = str(error).partition("\n\nDebug source")[0]
    code = re.search(r"<Code>([^<]{1,100})</Code>", text)
    if code is not None:
        message = re.search(r"<Message>([^<]{1,300})</Message>", text)
        return f"{code[1]}: {message[1]}" if message is not None else code[1]
    status = re.search(r"status code: (\d{3}[\w ]*)", text)
    if status is not None:
        return f"answered {status[1].strip()}"
    reason = re.sub(r"\w+://\S+", "…", text.rpartition(" - ")[2]).partition("\n")[0][:300]
    return f"{reason}; is the endpoint right, and are there credentials in the environment?"
