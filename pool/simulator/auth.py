"""Who asks: access tokens, session keys, Basic, the login with its two cookies."""

from __future__ import annotations

import base64
import secrets
from datetime import datetime, timedelta
from email.utils import format_datetime

from .call import Call
from .fields import Fields
from .records import AccessToken, Json, User
from .render import basic_user, timestamp
from .replies import Refusal, Reply, detail, forbidden
from .versions import ACCESS_TOKENS

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_SECONDS = 14 * 24 * 3600
CSRF_SECONDS = 364 * 24 * 3600


async def authenticate(call: Call) -> None:
    """Find the caller; leave the call anonymous when it shows nothing.

    Raises 401 for credentials that are wrong, 403 for a read-only token that wants to write
    and for a session without its CSRF token.
    """
    scheme, _, value = (call.header("authorization") or "").partition(" ")
    value = value.strip()
    match scheme.lower():
        case "bearer" if call.settings.since(ACCESS_TOKENS):
            _accept_token(call, value)
        case "token":
            user = call.state.session_keys.get(value)
            if user is None:
                raise unauthorized("Invalid token.")
            call.authenticated_as(user)
        case "basic":
            call.cookie_mattered = True
            await call.spend(call.timings.basic_auth)
            call.authenticated_as(_basic_user(call, value))
        case _:
            call.cookie_mattered = True
            _accept_session(call)


def unauthorized(message: str) -> Refusal:
    return Refusal(401, {"detail": message}, headers={"www-authenticate": "Token"})


def _accept_token(call: Call, value: str) -> None:
    token = call.state.tokens.get(value)
    if token is None or (token.expires is not None and token.expires <= call.state.now()):
        raise unauthorized("Invalid token.")
    if token.read_only and call.request.method not in SAFE_METHODS:
        raise forbidden()
    token.last_used = call.state.now()
    call.authenticated_as(token.user)


def _basic_user(call: Call, value: str) -> User:
    try:
        name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        raise unauthorized("Invalid basic header.") from None
    user = call.state.user_named(name)
    if user is None or not secrets.compare_digest(user.password.encode(), password.encode()):
        raise unauthorized("Invalid username/password.")
    return user


def _accept_session(call: Call) -> None:
    user = call.state.sessions.get(call.request.cookies.get("sessionid", ""))
    if user is None:
        return
    if call.request.method not in SAFE_METHODS:
        origin = call.header("origin")
        if origin not in (None, call.base_url):
            message = f"Origin checking failed - {origin} does not match any trusted origins."
            raise detail(403, f"CSRF Failed: {message}")
        cookie = call.request.cookies.get("csrftoken")
        header = call.header("x-csrftoken")
        if not header:
            raise detail(403, "CSRF Failed: CSRF token missing.")
        if not cookie or not secrets.compare_digest(cookie, header):
            raise detail(
                403, "CSRF Failed: CSRF token from the 'X-Csrftoken' HTTP header incorrect."
            )
    call.authenticated_as(user)


async def login(call: Call) -> Reply:
    fields = Fields(await call.json_object())
    name = fields.text("username", default="") or fields.text("email", default="")
    password = fields.text("password", required=True, blank=False)
    fields.check()
    await call.spend(call.timings.login)
    user = call.state.user_named(name or "")
    if user is None or not secrets.compare_digest(
        user.password.encode(), (password or "").encode()
    ):
        raise Refusal(400, {"non_field_errors": ["Unable to log in with provided credentials."]})
    user.last_login = call.state.now()
    key, session = secrets.token_hex(20), secrets.token_hex(16)
    call.state.session_keys[key] = user
    call.state.sessions[session] = user
    reply = Reply({"key": key}, headers={"vary": "Accept, Cookie, Origin"})
    moment = call.state.now()
    _set_cookie(reply, "sessionid", session, moment, SESSION_SECONDS, http_only=True)
    csrf = secrets.token_urlsafe(24)
    _set_cookie(reply, "csrftoken", csrf, moment, CSRF_SECONDS, http_only=False)
    return reply


def _set_cookie(
    reply: Reply, name: str, value: str, moment: datetime, seconds: int, *, http_only: bool
) -> None:
    expires = format_datetime(moment + timedelta(seconds=seconds), usegmt=True)
    parts = [f"{name}={value}", f"expires={expires}"]
    if http_only:
        parts.append("HttpOnly")
    parts += [f"Max-Age={seconds}", "Path=/", "SameSite=Lax"]
    reply.headers.append("set-cookie", "; ".join(parts))


async def logout(call: Call) -> Reply:
    call.state.sessions.pop(call.request.cookies.get("sessionid", ""), None)
    scheme, _, value = (call.header("authorization") or "").partition(" ")
    if scheme.lower() == "token":
        call.state.session_keys.pop(value.strip(), None)
    reply = Reply({"detail": "Successfully logged out."})
    reply.delete_cookie("sessionid", path="/", samesite="lax")
    return reply


async def own_token(call: Call) -> Reply:
    _, _, value = (call.header("authorization") or "").partition(" ")
    token = call.state.tokens.get(value.strip())
    if token is None:
        raise detail(404, "Not found.")
    return Reply(token_json(token, call.base_url))


def token_json(token: AccessToken, base_url: str) -> Json:
    return {
        "id": token.id,
        "name": token.name,
        "created_date": timestamp(token.created),
        "updated_date": timestamp(token.created),
        "expiry_date": timestamp(token.expires),
        "last_used_date": timestamp(token.last_used),
        "read_only": token.read_only,
        "owner": basic_user(token.user, base_url),
    }
