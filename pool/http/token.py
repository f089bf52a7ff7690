"""``GET /v1/token``: what the caller's token is for."""

from __future__ import annotations

from fastapi import APIRouter, Request

from pool.http import openapi
from pool.http.access import GuardedRoute, caller_of
from pool.http.schemas import Token

router = APIRouter(tags=["status"], responses=openapi.PROTECTED, route_class=GuardedRoute)


@router.get("/v1/token", summary="Read what the token is for", response_description="Its role")
async def token(request: Request) -> Token:
    """Its name, its role, and the templates that it is bound to."""
    caller = caller_of(request)
    return Token(name=caller.tenant, role=caller.role, templates=sorted(caller.templates))
