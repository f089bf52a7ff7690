"""``POST /webhooks/cvat``: takes what CVAT delivers, once its signature is known to be right."""

from __future__ import annotations

from typing import Final, Protocol

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from pool.cvat.webhooks import SIGNATURE_HEADER
from pool.errors import BadSignature, TooBusy, TooLarge, TooSlow
from pool.http import openapi
from pool.http.auth import WEBHOOKS
from pool.http.limits import read

PATH: Final = WEBHOOKS
#: Bytes of the longest body that is read; CVAT's are below 2 KiB.
LONGEST: Final = 2**20


class Receiver(Protocol):
    """What the deliveries go to; see :class:`pool.tracking.webhook_receiver.Deliveries`."""

    def authentic(self, body: bytes, signature: str) -> bool: ...

    def put(self, body: bytes, signature: str) -> bool: ...


def webhook_router(receiver: Receiver, *, patience: float) -> APIRouter:
    """The route, for one receiver. A body has to come as :func:`pool.http.limits.blocks` says."""
    router = APIRouter(tags=["webhooks"])

    @router.post(
        PATH,
        status_code=204,
        summary="Receive a webhook of CVAT's",
        responses={
            **openapi.problems(BadSignature, TooLarge, TooSlow, TooBusy),
            204: openapi.answer("It is taken"),
        },
    )
    async def receive(request: Request) -> Response:
        """Answers 204 to everything that CVAT has signed, be it of use or not."""
        signature = request.headers.get(SIGNATURE_HEADER, "")
        if not signature:
            raise BadSignature
        body = await read(request, most=LONGEST, patience=patience)
        if not await run_in_threadpool(receiver.authentic, body, signature):
            raise BadSignature
        if not receiver.put(body, signature):
            raise TooBusy
        return Response(status_code=204)

    return router
