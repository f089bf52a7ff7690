"""What happens to calls on their way through a server with faults."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import assert_never

from starlette.responses import Response

from .call import Call
from .connection import CutReply, HalfReply, SlowReply
from .fault_table import Active, Faults
from .faults import (
    CallFault,
    Cut,
    Error,
    ForgottenRequest,
    Hang,
    Latency,
    Quota,
    SlowBody,
)
from .replies import NGINX, SERVER_ERROR, Refusal, Reply, nginx_page
from .requests_api import task_id_of, unknown_request

Answer = Callable[[], Awaitable[Response]]


class FaultyPassage:
    """Takes each call past the rules that hit it; the first added rule is the outermost."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def __call__(self, call: Call, answer: Answer) -> Response:
        if not self._faults:
            return await answer()
        name = await _task_name(call) if self._faults.name_tasks else ""
        concerned = functools.partial(_concerned, call, name)
        firing = self._faults.firing(CallFault, call.operation, concerned)
        for active in reversed(firing):
            answer = functools.partial(self._disturb, active, call, answer)
        return await answer()

    async def _disturb(self, active: Active[CallFault], call: Call, answer: Answer) -> Response:
        match active.fault:
            case Latency(seconds=seconds, to=to, at=at):
                return await self._late(active.seconds(seconds, to), at, answer)
            case Error() as fault:
                await (call.drain() if fault.at == "before" else answer())
                return _error(fault)
            case Quota(message=message):
                await call.drain()
                return Reply([message], status=403)
            case Cut() as fault:
                return await _cut(fault, call, answer)
            case Hang(at=at):
                return await self._hang(active, at, call, answer)
            case SlowBody(pieces=pieces, pause=pause):
                return await self._slow(pieces, pause, answer)
            case ForgottenRequest():
                return Reply.of_refusal(unknown_request())
            case other:
                raise NotImplementedError(other.kind)

    async def _slow(self, pieces: int, pause: float, answer: Answer) -> Response:
        response = await answer()
        if isinstance(response, CutReply | HalfReply | SlowReply):
            return response
        wait = functools.partial(self._faults.pause, pause)
        return SlowReply(response, pieces=pieces, pause=wait)

    async def _late(self, seconds: float, at: str, answer: Answer) -> Response:
        if at == "before":
            await self._faults.pause(seconds)
            return await answer()
        response = await answer()
        await self._faults.pause(seconds)
        return response

    async def _hang(
        self, active: Active[CallFault], at: str, call: Call, answer: Answer
    ) -> Response:
        # Read now: the caller may have gone when it is let through, and it counts even so.
        await call.request.body()
        response = await answer() if at == "after" else None
        await active.released.wait()
        if self._faults.closed.is_set():
            return CutReply(reset=True)
        return response or await answer()


async def _task_name(call: Call) -> str:
    """The name of the task that a call is about, or is to create; "" when there is none."""
    if call.operation == "tasks:create":
        try:
            return str((await call.json_object()).get("name", ""))
        except Refusal:
            return ""
    task = call.state.tasks.get(call.request.path_params.get("id", 0))
    return task.name if task is not None and "/api/tasks/" in call.request.url.path else ""


def _concerned(call: Call, name: str, fault: CallFault) -> bool:
    """Whether a rule is for this task, and for how things stand."""
    if not fnmatchcase(name, fault.task):
        return False
    match fault:
        case Quota(limit=limit):
            return len(call.state.tasks) >= limit
        case ForgottenRequest():
            number = task_id_of(str(call.request.path_params.get("rq_id", "")))
            task = call.state.tasks.get(number or 0)
            return task is not None and not task.job_ids
    return True


async def _cut(fault: Cut, call: Call, answer: Answer) -> Response:
    match fault.at:
        case "arriving":
            pass
        case "before":
            await call.drain()
        case "after":
            await answer()
        case "answer":
            response = await answer()
            if not isinstance(response, CutReply):
                return HalfReply(response, reset=fault.reset)
        case other:
            assert_never(other)
    return CutReply(reset=fault.reset)


def _error(fault: Error) -> Response:
    status, message = fault.status, fault.message
    headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
    if message is None and status in NGINX:
        return nginx_page(status, headers)
    if message is None and status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return Reply(status=status, headers=headers, html=SERVER_ERROR)
    if message is None and status == HTTPStatus.TOO_MANY_REQUESTS:
        message = "Request was throttled."
        if fault.retry_after is not None:
            message += f" Expected available in {fault.retry_after} seconds."
    if message is None:
        known = {each.value: each.phrase for each in HTTPStatus}
        message = f"{known.get(status, 'Error')}."
    return Reply({"detail": message}, status=status, headers=headers)
