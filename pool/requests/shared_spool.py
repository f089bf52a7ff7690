"""A spool that all machines can reach: each entry is one object of a bucket.

An object begins with the manifest, as one line of JSON; the files follow it, one after the other.
It is there whole or not at all, as buckets have it, and it is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pool.errors import PoolError, StoreError
from pool.logs import get_logger
from pool.model import new_id
from pool.requests.bucket import Bucket

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

log = get_logger(__name__)

#: Seconds that one call may take, with at most :data:`CHUNK` bytes, and for which one that fails in
#: a way that passes is tried again.
TIMEOUT: Final = 20.0
RETRY_FOR: Final = 3.0
#: Bytes of a larger entry that are sent or fetched at a time, and how many such at the same time.
CHUNK: Final = 8 * 2**20
AT_ONCE: Final = 4
#: Objects may have 10,000 parts.
MOST_PARTS: Final = 9_000
BLOCK: Final = 2**20
#: Seconds for which a failure is remembered that no call has followed.
TROUBLE_FOR: Final = 60.0
#: Seconds after a failure in which nothing is called that can be left for later.
SPARED: Final = 5.0


class SharedSpool:
    """The objects of one pool below an address such as ``s3://bucket/prefix``. Thread-safe.

    The methods raise StoreError when the bucket cannot be used, within :data:`TIMEOUT` seconds
    of its last answer.
    """

    def __init__(self, address: str, pool_id: str) -> None:
        self.address = address
        scheme, _, place = address.partition("://")
        bucket, _, prefix = place.partition("/")
        self._prefix = f"{prefix}/{pool_id}/" if prefix else f"{pool_id}/"
        self._bucket = Bucket(
            f"{scheme}://{bucket}",
            timeout=TIMEOUT,
            retry_for=RETRY_FOR,
            unavailable=lambda why: StoreError(f"the spool {why}"),
        )
        #: Why the last call has failed, and when, by the monotonic clock.
        self._failed: tuple[str, float] | None = None

    @property
    def trouble(self) -> str:
        """Why the last call has failed; empty when it has not, or that was long ago."""
        failed = self._failed
        return failed[0] if failed and time.monotonic() < failed[1] + TROUBLE_FOR else ""

    def put(self, request_id: str, manifest: bytes, files: Sequence[Path], size: int) -> None:
        """Write an entry, whose files have ``size`` bytes; it is there for all when this returns,
        and when it raises, it mostly is not."""
        total = len(manifest) + 1 + size
        with self._used() as client:
            import obstore

            path = self._prefix + request_id
            if total <= CHUNK:
                obstore.put(client, path, b"".join(_blocks(manifest, files)), use_multipart=False)
            else:
                obstore.put(
                    client,
                    path,
                    _blocks(manifest, files),
                    use_multipart=True,
                    chunk_size=max(CHUNK, total // MOST_PARTS),
                    max_concurrency=AT_ONCE,
                )

    def fetch(self, request_id: str) -> Iterator[bytes]:
        """Yield the bytes of an entry, in pieces.

        :raises FileNotFoundError: there is none.
        """
        path, offset, total = self._prefix + request_id, 0, 1
        while offset < total:
            with self._used(missing=True) as client:
                import obstore

                if offset == 0:
                    # The size is not known yet. A range may end behind it.
                    found = obstore.get(client, path, options={"range": (0, CHUNK)})
                    total, piece = found.meta["size"], bytes(found.bytes())
                else:
                    end = min(total, offset + CHUNK)
                    piece = bytes(obstore.get_range(client, path, start=offset, end=end))
            if not piece:
                return
            offset += len(piece)
            yield piece

    def delete(self, request_ids: Sequence[str]) -> None:
        """Delete entries as well as possible: what cannot be deleted now is swept later."""
        failed = self._failed
        if failed is not None and time.monotonic() < failed[1] + SPARED:
            return
        try:
            self._delete(request_ids)
        except PoolError as error:
            log.warning("data not deleted yet", requests=len(request_ids), why=str(error))

    def sweep(self, request_ids: Sequence[str]) -> None:
        """Delete entries, of which :meth:`delete` has left some."""
        self._delete(request_ids)

    def _delete(self, request_ids: Sequence[str]) -> None:
        with self._used():
            self._bucket.delete([self._prefix + each for each in request_ids])

    def entries(self) -> dict[str, tuple[int, float]]:
        """Return the bytes of all entries, and when they were written, in seconds since the
        epoch."""
        found: dict[str, tuple[int, float]] = {}
        with self._used() as client:
            import obstore

            for some in obstore.list(client, self._prefix, chunk_size=1000):
                for each in some:
                    name = each["path"].removeprefix(self._prefix)
                    found[name] = (each["size"], each["last_modified"].timestamp())
        return found

    def check(self) -> None:
        """Write an entry, read it and delete it.

        :raises StoreError: that cannot be done.
        :raises ConfigError: obstore is not installed.
        """
        name = f"check-{new_id()}"
        self.put(name, b"{}", (), 0)
        try:
            if b"".join(self.fetch(name)) != b"{}\n":
                raise StoreError(f"the spool {self.address}: what was written reads differently")
        except FileNotFoundError:
            raise StoreError(f"the spool {self.address}: what was written is not there") from None
        finally:
            self._delete([name])

    def check_client(self) -> None:
        """Check what is needed on this machine, without a call.

        :raises ConfigError: obstore is not installed.
        :raises StoreError: the environment has not what it takes.
        """
        with self._bucket.reported():
            pass

    @contextmanager
    def _used(self, *, missing: bool = False) -> Iterator[S3Store | GCSStore | AzureStore]:
        """Remember whether the bucket can be used."""
        try:
            with self._bucket.reported(missing=missing) as client:
                yield client
        except StoreError as error:
            self._failed = (error.detail, time.monotonic())
            raise
        except FileNotFoundError:
            self._failed = None
            raise
        self._failed = None


def _blocks(manifest: bytes, files: Sequence[Path]) -> Iterator[bytes]:
    yield manifest + b"\n"
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                yield block


class Pieces:
    """What :meth:`SharedSpool.fetch` yields, read as a line and as files."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def line(self, most: int) -> bytes:
        """Return the first line without its end.

        :raises ValueError: it is longer than ``most`` bytes, or has no end.
        """
        found = bytearray()
        while len(found) <= most:
            piece = next(self._pieces, b"")
            if not piece:
                break
            at = piece.find(b"\n")
            if at >= 0:
                self._left = memoryview(piece)[at + 1 :]
                return bytes(found + piece[:at])
            found += piece
        raise ValueError("no manifest")

    def blocks(self, size: int) -> Iterator[memoryview]:
        """Yield the next ``size`` bytes, or fewer where there are no more."""
        while size > 0:
            if not self._left:
                self._left = memoryview(next(self._pieces, b""))
                if not self._left:
                    return
            block, self._left = self._left[:size], self._left[size:]
            size -= len(block)
            yield block

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        return not self._left
