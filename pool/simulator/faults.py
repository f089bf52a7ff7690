"""What can go wrong with a server: each fault a rule that says where, how often and what.

A rule is data; what it does is in the file of what it disturbs. ``where`` is a pattern with
``*`` and ``?``: for calls the operation (``tasks:create``, ``data:*``; see
:data:`pool.simulator.routes.OPERATIONS`), for imports the task's name, for webhooks the event.
``rate`` is the share of what fits that is hit, drawn from the server's seed; ``times`` ends
the rule after so many hits. Rules apply in the order in which they were added, the first
outermost.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

Moment = Literal["before", "after"]

#: The least that the values of a rule can be, whatever its kind.
_LEAST = {
    "times": 1, "seconds": 0, "retry_after": 0, "pause": 0, "pieces": 1, "factor": 0, "copies": 1,
    "count": 2,
}  # fmt: skip
#: What rq says of a job whose process was killed.
WORK_HORSE_DIED = "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); "


class InvalidFault(ValueError):
    """The fault cannot be: a value is out of its range, or the pattern fits nothing."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What all rules have."""

    kind: ClassVar[str] = ""

    where: str = field(default="*", kw_only=False)
    rate: float = 1.0
    times: int | None = None

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    def __post_init__(self) -> None:
        values = vars(self)
        if not 0.0 < self.rate <= 1.0:
            raise InvalidFault(f"rate: more than 0 and at most 1, not {self.rate}")
        for name, least in _LEAST.items():
            value = values.get(name)
            if isinstance(value, int | float) and value < least:
                raise InvalidFault(f"{name}: {least} or more, not {value}")
        if not 400 <= values.get("status", 400) <= 599:
            raise InvalidFault(f"status: 400 to 599, not {values['status']}")
        if values.get("to") is not None and values["to"] < values["seconds"]:
            raise InvalidFault(f"to: at least seconds ({values['seconds']}), not {values['to']}")

    def to_json(self) -> dict[str, Any]:
        """The rule as :mod:`pool.simulator.fault_reading` reads it."""
        return {"kind": self.kind, **asdict(self)}


# --- Calls -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CallFault(Fault):
    """Something that happens to a call; with ``task``, a pattern as ``where`` is one, only to
    those about a task of such a name, the create of one among them."""

    task: str = "*"


@dataclass(frozen=True, kw_only=True)
class Latency(CallFault):
    """It takes ``seconds`` longer, or between ``seconds`` and ``to``."""

    seconds: float = 1.0
    to: float | None = None
    at: Moment = "before"


@dataclass(frozen=True, kw_only=True)
class Error(CallFault):
    """An error is answered, in the words of CVAT, Django or nginx, whichever sends it.

    ``after``: CVAT has done what it was asked for, and the answer is the proxy's invention.
    """

    status: int = 503
    message: str | None = None
    #: Seconds, or whatever else a server may send as ``Retry-After``.
    retry_after: int | str | None = None
    at: Moment = "before"


@dataclass(frozen=True, kw_only=True)
class Quota(CallFault):
    """A create is refused while there are ``limit`` tasks or more, as CVAT's limits refuse it."""

    where: str = field(default="tasks:create", kw_only=False)
    limit: int = 0
    message: str = "user tasks limit reached"


@dataclass(frozen=True, kw_only=True)
class Cut(CallFault):
    """The TCP connection is cut.

    ``arriving``: before the body is read. ``before``: when it is there, but nothing is done
    with it. ``after``: when all is done, but no byte of the answer is sent. ``answer``: in the
    middle of the answer. ``reset``: with a TCP reset; else the stream just ends.
    """

    at: Literal["arriving", "before", "after", "answer"] = "before"
    reset: bool = True


@dataclass(frozen=True, kw_only=True)
class Hang(CallFault):
    """The answer does not come until the rule is removed.

    ``before``: the call is carried out only then, even if the caller has long gone.
    """

    at: Moment = "before"


@dataclass(frozen=True, kw_only=True)
class SlowBody(CallFault):
    """The answer's body comes in ``pieces``, ``pause`` seconds apart."""

    pieces: int = 10
    pause: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ForgottenRequest(CallFault):
    """A request is not known while its task has no jobs, though the import goes on."""

    where: str = field(default="requests:get", kw_only=False)


# --- Imports -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImportFault(Fault):
    """Something that happens to an import."""


@dataclass(frozen=True, kw_only=True)
class HungImport(ImportFault):
    """It stays ``queued`` or ``started`` until the rule is removed.

    A started one keeps its worker: as many of them as there are workers stop all imports.
    """

    at: Literal["queued", "started"] = "queued"


@dataclass(frozen=True, kw_only=True)
class FailedImport(ImportFault):
    """It fails with ``message``, and the task is burnt."""

    message: str = "OSError: [Errno 28] No space left on device\n"


@dataclass(frozen=True, kw_only=True)
class SlowImport(ImportFault):
    """It needs ``factor`` times the processor, and ``seconds`` more, or up to ``to``."""

    factor: float = 1.0
    seconds: float = 0.0
    to: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeadWorker(ImportFault):
    """The worker's process dies with it, before the jobs are committed or just after.

    The request is ``failed`` in the end, or ``gone``, as when its time in Redis is over.
    """

    at: Moment = "before"
    request: Literal["failed", "gone"] = "failed"
    message: str = WORK_HORSE_DIED


# --- Webhooks ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WebhookFault(Fault):
    """Something that happens to a webhook's delivery."""


@dataclass(frozen=True, kw_only=True)
class LostWebhook(WebhookFault):
    """It is never sent."""


@dataclass(frozen=True, kw_only=True)
class DoubledWebhook(WebhookFault):
    """It is sent ``copies`` times."""

    copies: int = 2


@dataclass(frozen=True, kw_only=True)
class LateWebhook(WebhookFault):
    """It is sent ``seconds`` later, or between ``seconds`` and ``to``; others overtake it."""

    seconds: float = 1.0
    to: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReversedWebhooks(WebhookFault):
    """They are held until there are ``count`` of them, or the rule ends; the last goes first."""

    count: int = 2


@dataclass(frozen=True, kw_only=True)
class ForgedWebhook(WebhookFault):
    """Its signature was made with another secret."""


KINDS: dict[str, type[Fault]] = {
    kind.kind: kind
    for kind in (
        Latency, Error, Quota, Cut, Hang, SlowBody, ForgottenRequest,
        HungImport, FailedImport, SlowImport, DeadWorker,
        LostWebhook, DoubledWebhook, LateWebhook, ReversedWebhooks, ForgedWebhook,
    )
}  # fmt: skip
