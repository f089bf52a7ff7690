"""Tokens: who calls the daemon, what that caller may do, and what it sees."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from pool.config.arguments import check_tenant
from pool.config.settings import SecretSettings, TokenSettings
from pool.errors import ConfigError, NotAllowed
from pool.model import Role, Scope
from pool.permissions import warn_of_readers

#: The variable with the operator's tokens.
OPERATORS: Final = "POOL_API_TOKEN"


def read_secret(settings: SecretSettings, environ: Mapping[str, str], *, of: str) -> str | None:
    """Return a secret, which is that ``of`` something; None where it has none.

    :raises ConfigError: the variable or file that should hold it does not.
    """
    if settings.secret_env is not None:
        secret = environ.get(settings.secret_env, "").strip()
        if not secret:
            raise ConfigError(
                f"the secret of {of} is to be in {settings.secret_env}, which is not set in the "
                "environment"
            )
        return secret
    if settings.secret_file is None:
        return None
    try:
        secret = settings.secret_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"cannot read {settings.secret_file}, the secret of {of}: {why}"
        ) from None
    if not secret:
        raise ConfigError(f"{settings.secret_file}, the secret of {of}, is empty")
    return secret


def tokens_in(text: str | None) -> tuple[str, ...]:
    """Return the tokens in a text, separated by commas: during a rotation the old one and the new
    one are valid."""
    return tuple(filter(None, (token.strip() for token in (text or "").split(","))))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of the token, "" for the operator, what it may do, and for which
    templates; none named is all of them."""

    tenant: str = ""
    role: Role = "operate"
    templates: frozenset[str] = frozenset()

    @property
    def scope(self) -> Scope:
        """What it sees."""
        tenant = self.tenant if self.role == "submit" else None
        return Scope(tenant=tenant, templates=self.templates)

    def scope_of(self, tenant: str | None) -> Scope:
        """Return what it sees of one tenant, or of all that it sees (None).

        :raises NotAllowed: it sees what is its own only, and names another.
        """
        scope, tenant = self.scope, check_tenant(tenant)
        if tenant is None or tenant == scope.tenant:
            return scope
        if scope.tenant is not None:
            raise NotAllowed(
                f"the role of the token {self.tenant!r} is {self.role!r}: it sees its own only"
            )
        return replace(scope, tenant=tenant)


#: A caller with a token of POOL_API_TOKEN, or one on this machine where there are no tokens.
OPERATOR: Final = Caller()


class Tokens:
    """The tokens in force. Thread-safe: they are replaced as a whole."""

    def __init__(
        self,
        settings: Mapping[str, TokenSettings] | None = None,
        *,
        operators: tuple[str, ...] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """
        :raises ConfigError: as :meth:`follow`.
        """
        self._operators = operators
        self._environ = environ
        self._settings: Mapping[str, TokenSettings] = {}
        self._known: tuple[tuple[bytes, Caller], ...] = ()
        self.follow(settings or {})

    def __bool__(self) -> bool:
        """Whether there are any, so that callers need one."""
        return bool(self._known)

    def follow(self, settings: Mapping[str, TokenSettings] | None = None) -> list[str]:
        """Put these in force, by default those that are, with their secrets as they are now; return
        the names of those that have changed.

        :raises ConfigError: a secret is not found, or is another token's, too, or no token is left,
            so that any caller would be the operator; nothing has changed.
        """
        settings = self._settings if settings is None else settings
        known: dict[bytes, Caller] = {}
        for secret, caller in self._read(settings):
            digest = sha256(secret.encode()).digest()
            if known.setdefault(digest, caller) != caller:
                other = known[digest].tenant
                same = f"that of tokens.{other}" if other else f"one of {OPERATORS}"
                raise ConfigError(
                    f"the secret of tokens.{caller.tenant} is {same}: each needs its own"
                )
        if self._known and not known:
            raise ConfigError(
                "no token is left: callers would need none from now on; if that is meant, restart"
            )
        changed = {caller.tenant for _, caller in known.items() ^ set(self._known)}
        self._settings, self._known = settings, tuple(known.items())
        return sorted(changed)

    def caller(self, given: bytes) -> Caller | None:
        """Return whose token this is, or None."""
        digest = sha256(given).digest()
        # All of them every time, and digests of one length: the time taken reveals nothing.
        found = [caller for known, caller in self._known if hmac.compare_digest(digest, known)]
        return found[0] if found else None

    def _read(self, settings: Mapping[str, TokenSettings]) -> Iterator[tuple[str, Caller]]:
        for token in self._operators:
            yield token, OPERATOR
        for name, each in settings.items():
            if each.secret_file is not None:
                warn_of_readers(each.secret_file, f"secret file of tokens.{name}")
            secrets = tokens_in(read_secret(each, self._environ, of=f"tokens.{name}"))
            if not secrets:
                raise ConfigError(f"the secret of tokens.{name} has no token in it")
            for secret in secrets:
                yield secret, Caller(name, each.role, frozenset(each.templates))
