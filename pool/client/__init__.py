"""The pool behind an address: the same methods as TaskPool over HTTP, for threads and asyncio."""

from __future__ import annotations

from pool.client.asynchronous import AsyncLease, AsyncRemotePool, AsyncRequest
from pool.client.pool import RemotePool

__all__ = ["AsyncLease", "AsyncRemotePool", "AsyncRequest", "RemotePool"]
