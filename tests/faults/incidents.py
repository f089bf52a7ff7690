"""What can go wrong at any moment: between two steps, or in the middle of one."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from faults.mortal import Interrupted, Mortal, Plan
from faults.world import World
from pool.errors import StoreError
from pool.simulator.actions import ActionFailed
from pool.simulator.faults import (
    Cut,
    DeadWorker,
    Error,
    FailedImport,
    Fault,
    ForgottenRequest,
    Hang,
    HungImport,
    Latency,
    Quota,
    SlowImport,
)


@dataclass(frozen=True)
class Incident:
    """Something happens. ``victim`` is the process in whose middle it does, if it is in one."""

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Broken(Incident):
    """The server breaks in some way, until it is healed or the fault's ``times`` are over."""

    fault: Fault

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        world.breaks(self.fault)


@dataclass(frozen=True)
class Healed(Incident):
    def strike(self, world: World, victim: Mortal | None = None) -> None:
        world.server.heal()


@dataclass(frozen=True)
class BehindOurBack(Incident):
    """People do something to a task that bears the pool's mark."""

    what: str
    number: int

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        mark = f"[cvat-pool {world.ours.store.pool_id}]"
        tasks = world.server.simulator.state.tasks.values()
        ids = [task.id for task in tasks if mark in task.name and not task.is_initialized]
        if ids and not world.server.door.is_shut:
            try:
                world.behind_our_back(self.what, ids[self.number % len(ids)])
            except ActionFailed:
                return


@dataclass(frozen=True)
class OnTheServer(Incident):
    """Something that an administrator or a power cut does."""

    what: str

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        actions = world.server.actions
        world.incidents[self.what] += 1
        match self.what:
            case "down" if not world.server.door.is_shut:
                actions.down(20.0)
            case "restart" if not world.server.door.is_shut:
                actions.down(1.0, queues=False)
            case "lose queues":
                actions.lose_queues()
            case "forget":
                actions.forget_requests()
            case "revoke":
                actions.revoke_tokens()
            case "restrict":
                actions.restrict_tokens()
            case "restore":
                actions.restore_tokens()
            case "clock forward":
                actions.jump_clock(3600.0)
            case "clock back":
                actions.jump_clock(-3600.0)
        world.server.settle()


@dataclass(frozen=True)
class OurClock(Incident):
    """The clock of the pool's machine is set."""

    seconds: float

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        world.incidents["our clock"] += 1
        world.clock.off += self.seconds


@dataclass(frozen=True)
class TimePasses(Incident):
    seconds: float

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        world.clock.sleep(self.seconds)
        world.server.settle()


@dataclass(frozen=True)
class Meanwhile(Incident):
    """Another process, or another thread of the same one, does something."""

    service: str
    number: int

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        if self.service in ("tracker", "threads"):
            living = world.living
            if living:
                world.run(living[self.number % len(living)], self.service)
        elif (daemon := world.maintainer) is not None:
            world.run(daemon, self.service)


@dataclass(frozen=True)
class SomebodySubmits(Incident):
    number: int

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        others = [each for each in world.living if each is not victim and not each.frozen]
        if others:
            world.submit(others[self.number % len(others)], world.variant.templates[0])


@dataclass(frozen=True)
class SomebodyReleases(Incident):
    """A lease is given back, maybe in the middle of an upload into its task."""

    number: int

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        others = [each for each in world.living if each is not victim and not each.frozen]
        if others and world.held:
            held = world.held[-1 - self.number % len(world.held)]
            world.release(others[self.number % len(others)], held, None)


@dataclass(frozen=True)
class Kill(Incident):
    """A process is killed: the one in whose middle this happens, else any one."""

    number: int = 0

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        living = [victim] if victim is not None else world.living
        if living:
            world.incidents["kill"] += 1
            living[self.number % len(living)].kill()


@dataclass(frozen=True)
class Freeze(Incident):
    """A process gets no time for so long that the others take it for dead."""

    number: int

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        living = world.living
        if not living:
            return
        world.incidents["freeze"] += 1
        process = victim or living[self.number % len(living)]
        process.frozen = True
        world.clock.sleep(15.0)
        for other in world.living:
            world.do_all(other)
        process.frozen = False


@dataclass(frozen=True)
class Interrupt(Incident):
    """Control-C: the process goes on, but not with what it did."""

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        if victim is not None:
            world.incidents["interrupt"] += 1
            raise Interrupted


@dataclass(frozen=True)
class StoreFails(Incident):
    """One call to the store fails, as with a full disk."""

    def strike(self, world: World, victim: Mortal | None = None) -> None:
        if victim is not None:
            world.incidents["store"] += 1
            raise StoreError("the disk is full")


# --- Which of them, how often ---------------------------------------------------------------------

CALLS = (
    "tasks:create", "data:*", "data:*", "jobs:*", "requests:get", "tasks:list", "tasks:delete", "*",
)  # fmt: skip
SERVICES = (
    "tracker", "threads", "refill", "retirement", "reconcile", "adopt", "leases", "delete",
    "finalize", "lease_expiry", "reload", "dispatch", "cleanup", "sweep",
)  # fmt: skip

_few = st.integers(0, 9)
_times = st.sampled_from((1, 1, 2, None))


def _faults() -> st.SearchStrategy[Fault]:
    where = st.sampled_from(CALLS)
    return st.one_of(
        st.builds(Cut, where, at=st.sampled_from(("before", "after", "answer")), times=_times),
        # What CVAT refuses it has not done; a proxy may fail after CVAT has.
        st.builds(Error, where, status=st.sampled_from((401, 403, 404, 429, 500)), times=_times),
        st.builds(
            Error,
            where,
            status=st.sampled_from((500, 502, 503, 504)),
            at=st.sampled_from(("before", "after")),
            times=_times,
        ),
        st.builds(
            Hang, where, at=st.sampled_from(("before", "after")), times=st.sampled_from((1, 2))
        ),
        st.builds(Latency, where, seconds=st.sampled_from((1.0, 7.0)), times=_times),
        st.builds(Quota, limit=st.integers(3, 8)),
        st.builds(ForgottenRequest),
        st.builds(HungImport, at=st.sampled_from(("queued", "started")), times=_times),
        st.builds(FailedImport, times=_times),
        st.builds(SlowImport, seconds=st.sampled_from((2.0, 90.0)), times=_times),
        st.builds(
            DeadWorker,
            at=st.sampled_from(("before", "after")),
            request=st.sampled_from(("failed", "gone")),
            times=_times,
        ),
    )


def incidents() -> st.SearchStrategy[Incident]:
    """Anything that can happen between two steps."""
    broken = st.builds(Broken, _faults())
    return st.one_of(
        broken,
        broken,
        broken,
        st.builds(BehindOurBack, st.sampled_from(("delete", "fill", "rename", "move")), _few),
        st.builds(
            OnTheServer,
            st.sampled_from(
                (
                    "down", "restart", "lose queues", "forget", "revoke", "restrict", "restore",
                    "clock forward", "clock back",
                )
            ),
        ),
        st.builds(OurClock, st.sampled_from((-600.0, -20.0, 20.0, 600.0))),
        st.builds(TimePasses, st.sampled_from((1.0, 5.0, 15.0, 70.0, 400.0))),
        st.builds(Freeze, _few),
        st.builds(Kill, _few),
        st.builds(Healed),
    )  # fmt: skip


def plans() -> st.SearchStrategy[Plan | None]:
    """What happens in the middle of a step, and at which boundary; often nothing."""
    middle = st.one_of(
        incidents(),
        st.builds(Meanwhile, st.sampled_from(SERVICES), _few),
        st.builds(SomebodySubmits, _few),
        st.builds(SomebodyReleases, _few),
        st.builds(Kill),
        st.builds(Interrupt),
        st.builds(StoreFails),
    )
    return st.one_of(
        st.none(),
        st.builds(Plan, st.integers(1, 16), middle),
        # Just for this step: it begins with the fault.
        st.builds(Plan, st.just(1), st.builds(Broken, _faults())),
    )
