"""``POST /webhooks/cvat``: receives the webhooks of CVAT, and checks their signatures."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from pool.cvat.webhooks import SIGNATURE_HEADER
from pool.errors import BadSignature, TooBusy, TooLarge, TooSlow
from pool.http import openapi
from pool.http.context import state_of
from pool.http.middleware import WEBHOOKS
from pool.http.reading import read

#: Bytes of the longest body; those of CVAT are below 2 KiB.
LONGEST: Final = 2**20

router = APIRouter(tags=["webhooks"], responses=openapi.ANYWHERE)


@router.post(
    WEBHOOKS,
    status_code=204,
    response_class=Response,
    summary="Receive a webhook of CVAT",
    response_description="Accepted",
    responses=openapi.problems(BadSignature, TooLarge, TooSlow, TooBusy),
    openapi_extra=openapi.NO_TOKEN,
)
async def receive(request: Request) -> None:
    """Every delivery with a valid signature is answered with 204, also one that is not used."""
    state = state_of(request)
    signature = request.headers.get(SIGNATURE_HEADER, "")
    if not signature:
        raise BadSignature
    body = await read(request, most=LONGEST, timeout=state.receive_timeout)
    if not await state.workers.store(state.receiver.authentic, body, signature):
        raise BadSignature
    if not state.receiver.put(body, signature):
        raise TooBusy
