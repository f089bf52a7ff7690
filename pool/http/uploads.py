"""Accepting requests: their data goes into the spool, then they go to the dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from starlette.requests import Request

from pool.config.settings import Template, Templates
from pool.config.source import digest, frame_numbers
from pool.config.tokens import Caller
from pool.errors import InputError, StoreError, TooManyUploads, UnknownLease
from pool.http.multipart import FormReader
from pool.http.reading import LONGEST_LIST, blocks, read_json
from pool.http.schemas import RequestBody, RequestFields
from pool.http.shutdown import Shutdown
from pool.http.workers import Workers
from pool.model import Priority, RequestRecord, new_id
from pool.requests.dispatcher import Dispatcher
from pool.requests.incoming import Incoming
from pool.store import NewRequest
from pool.taskpool import TaskPool

#: Uploads that are received at the same time, and further ones that may wait for that.
MOST_UPLOADS: Final = 64
MOST_WAITING: Final = 512
#: Seconds for which an upload waits at most.
ADMITTED_WITHIN: Final = 10.0
#: The fields of a form beside its files.
FIELDS: Final = frozenset(RequestFields.model_fields)


class UploadLimiter:
    """Limits the uploads that are received at the same time, and those that wait for that."""

    def __init__(self, most: int = MOST_UPLOADS, *, most_waiting: int = MOST_WAITING) -> None:
        self._semaphore = asyncio.Semaphore(most)
        self._most_waiting = most_waiting
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether the next upload has to wait."""
        return self._semaphore.locked()

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Receive an upload inside the ``with`` block; wait for that in the order of arrival.

        :raises TooManyUploads: too many wait already, or it took too long.
        """
        if self.full and self._waiting >= self._most_waiting:
            raise TooManyUploads("try again in a moment")
        self._waiting += 1
        try:
            async with asyncio.timeout(ADMITTED_WITHIN):
                await self._semaphore.acquire()
        except TimeoutError:
            raise TooManyUploads("try again in a moment") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._semaphore.release()


class Uploads:
    """Accepts requests. A request that is not accepted leaves nothing in the spool.

    The row of a request is durable when :meth:`form` or :meth:`json` returns. Its data is durable
    when :meth:`keep` returns, before the caller is answered. The request may be served before that:
    data that CVAT has need not be written to the disk here.
    """

    def __init__(
        self, pool: TaskPool, dispatcher: Dispatcher, workers: Workers, shutdown: Shutdown
    ) -> None:
        self._process = pool.process
        self._spool = pool.process.spool
        self._clock = pool.clock
        self._settings = pool.settings.daemon
        self._dispatcher = dispatcher
        self._workers = workers
        self._shutdown = shutdown
        self._uploads = UploadLimiter()

    async def form(self, request: Request, key: str | None, caller: Caller) -> RequestRecord:
        """Accept a request whose files are in the body.

        :raises pool.errors.PoolError: it is not accepted.
        :raises pool.errors.Stopping: the server is stopping.
        :raises starlette.requests.ClientDisconnect: the caller has gone before the body ended.
        """
        request_id = new_id(self._clock.now())
        reader = FormReader(
            request.headers.get("content-type", ""),
            partial(self._spool.receive, request_id),
            fields=FIELDS,
            most_files=self._settings.max_files,
            digests=key is not None,
        )
        async with self._uploads.admitted():
            try:
                async with self._shutdown.reading():
                    last = await self._read(request, reader, caller)
            except BaseException:
                await asyncio.shield(self._workers.spool(reader.discard))
                raise
            # From here on the request is accepted, even if its caller disconnects.
            return await self._workers.spool(self._take, reader, last, request_id, key, caller)

    async def json(self, request: Request, key: str | None, caller: Caller) -> RequestRecord:
        """Accept a request whose data CVAT fetches. Raises the errors of :meth:`form`."""
        async with self._uploads.admitted(), self._shutdown.reading():
            body = await read_json(
                request, RequestBody, timeout=self._settings.receive_timeout, most=LONGEST_LIST
            )
        named = body.share or body.urls or (body.cloud.keys if body.cloud else ())
        if len(named) > self._settings.max_files:
            raise InputError(f"at most {self._settings.max_files} files")
        return await self._workers.spool(self._take_sources, body, key, caller)

    async def keep(self, request_id: str) -> None:
        """Flush the data of an accepted request to the disk, unless it was served already.

        :raises StoreError: the data cannot be written.
        """
        await self._workers.spool(self._keep, request_id)

    async def _read(self, request: Request, reader: FormReader, caller: Caller) -> bytes:
        """Feed the reader all of the body but the last block; return that."""
        async for block, last in blocks(
            request, most=self._settings.max_body, timeout=self._settings.receive_timeout
        ):
            if last:
                return block
            await self._workers.spool(self._feed, reader, block, caller)
        raise AssertionError("a body has a last block")

    # --- On threads -----------------------------------------------------------------------------

    def _keep(self, request_id: str) -> None:
        try:
            self._spool.sync(request_id)
        except StoreError:
            # It may have been served meanwhile.
            if self._spool.load(request_id) is not None:
                raise

    def _feed(self, reader: FormReader, block: bytes, caller: Caller) -> None:
        reader.feed(block)
        # Fails early: the rest of the body need not be received.
        if "template" in reader.fields:
            self._templates(caller).named(reader.fields["template"])

    def _take(
        self, reader: FormReader, block: bytes, request_id: str, key: str | None, caller: Caller
    ) -> RequestRecord:
        try:
            reader.feed(block)
            incoming = reader.end()
            fields = RequestFields.from_form(reader.fields)
            return self._accept(incoming, request_id, fields, key, reader.digests, caller)
        except BaseException:
            reader.discard()
            raise

    def _take_sources(self, body: RequestBody, key: str | None, caller: Caller) -> RequestRecord:
        request_id = new_id(self._clock.now())
        with self._spool.receive(request_id) as incoming:
            return self._accept(incoming, request_id, body, key, [], caller)

    def _accept(
        self,
        incoming: Incoming,
        request_id: str,
        fields: RequestFields,
        key: str | None,
        digests: list[bytes],
        caller: Caller,
    ) -> RequestRecord:
        template, tenant = self._destination(fields, caller)
        upload = incoming.finish(
            **fields.sources,
            params=fields.params,
            job_size=fields.job_size,
            template=template,
            sync=False,
        )
        new = NewRequest(
            id=request_id,
            tenant=tenant,
            name=fields.name,
            assignee=fields.assignee,
            files=upload.names,
            given=upload.given,
            frame_numbers=frame_numbers(upload, template.data),
            size=upload.size,
            priority=fields.priority or Priority(template.importing.priority),
            stream=fields.stream,
        )
        payload = ""
        if key is not None:
            payload = digest(
                upload,
                template=template.name,
                name=fields.name,
                assignee=fields.assignee,
                stream=fields.stream,
                lease_id=fields.lease_id,
                contents=digests,
            )
        opened = self._dispatcher.accept(
            template,
            upload,
            new,
            idempotency_key=key,
            payload=payload,
            lease_id=fields.lease_id,
        )
        assert opened.request is not None
        return opened.request

    def _templates(self, caller: Caller) -> Templates:
        return self._process.templates.within(caller.scope)

    def _destination(self, fields: RequestFields, caller: Caller) -> tuple[Template, str]:
        """Return the template and the tenant of a request: those of its lease, if it names one."""
        if fields.lease_id is None:
            return self._templates(caller).named(fields.template or ""), caller.tenant
        lease = self._process.store.lease(fields.lease_id)
        if lease is None or not caller.scope.covers(lease):
            raise UnknownLease(fields.lease_id)
        if fields.template not in (None, lease.template):
            raise InputError(f"lease {lease.id} is of template {lease.template!r}")
        return self._templates(caller).named(lease.template), lease.tenant
