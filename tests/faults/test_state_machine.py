"""Any sequence of what processes, callers and people do, with faults between any two steps.

The real services on a real store and the simulated server, all in one thread and by one clock
that nobody waits for. After each step the promises of :mod:`promises` hold; and in the end, when
everything is healed and had its time, nothing is left over.

A run in CI is the same each time. A long one tries other sequences each time it is run:

    POOL_MACHINE_EXAMPLES=2000 pytest tests/faults/test_state_machine.py --timeout 7200
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from faults.blank import Blank, PostgresBlank, SqliteBlank
from faults.incidents import SERVICES, Incident, incidents, plans
from faults.mortal import Mortal, Plan, in_one_thread, signs_of_life_every
from faults.promises import Promises
from faults.variant import Variant
from faults.world import Held, World

EXAMPLES = int(os.environ.get("POOL_MACHINE_EXAMPLES", "0"))
X = TypeVar("X")
TEMPLATES = ("scenes", "roads")

_few = st.integers(0, 9)
_templates = st.sampled_from(TEMPLATES)
_keys = st.none() | st.sampled_from(("a", "b"))

_variants = st.builds(
    Variant,
    labels=st.sampled_from((("car",), ("car", "tram"))),
    min_size=st.integers(1, 3),
    max_size=st.integers(3, 4),
    on_empty=st.sampled_from(("create", "wait", "fail")),
    on_change=st.sampled_from(("recreate", "replenish")),
    grouping=st.sampled_from(("auto", "off")),
    templates=st.sampled_from((TEMPLATES, TEMPLATES[:1])),
    broken=st.sampled_from((False, False, False, True)),
)


class Machine(RuleBasedStateMachine):
    """Which process or lease a step is about is drawn as a number: they are few, and met often."""

    world: World
    #: Where its stores come from, made once.
    _blank: Callable[[], Blank] = staticmethod(cache(SqliteBlank))

    def __init__(self) -> None:
        super().__init__()
        self._exits = ExitStack()

    @initialize()
    def begin(self) -> None:
        self._exits.enter_context(in_one_thread())
        self.world = World(self._blank())
        self._exits.callback(self.world.close)
        self.promises = Promises(self.world)
        neighbour = self.world.start("daemon", self.world.theirs)
        assert neighbour is not None
        self.world.start("daemon")
        self.world.start("caller")
        self.world.live(3.0, pause=1.0)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._come_to_rest()
        finally:
            self._exits.close()

    def _come_to_rest(self) -> None:
        """All is healed, and there is a daemon; what is wrong then is wrong for good."""
        world = self.world
        world.server.heal()
        world.clock.off = 0.0
        world.live(3.0, pause=1.0)
        if world.variant.broken:
            world.configure(Variant())
        if not world.daemons:
            world.start("daemon")
        for template in TEMPLATES:
            world.ours.store.resume(template)
        with signs_of_life_every(3600.0):
            world.live(15.0, pause=3.0)
            for seconds, pause in ((200.0, 25.0), (3600.0, 600.0), (3600.0, 1800.0)):
                world.live(seconds, pause=pause)
            for _ in range(40):
                if not self.promises.unrest():
                    break
                world.live(60.0, pause=10.0)
            self.promises.check_at_rest()

    # --- Processes ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.living) < 5)
    @rule(role=st.sampled_from(("caller", "daemon")))
    def start(self, role: str) -> None:
        self.world.start(role)

    @precondition(lambda self: self.world.living)
    @rule(number=_few)
    def stop(self, number: int) -> None:
        if (process := self._any(self.world.living, number)) is not None:
            self.world.incidents["stop"] += 1
            process.do(process.stop)

    @rule(seconds=st.sampled_from((0.5, 3.0, 15.0)))
    def live(self, seconds: float) -> None:
        self.world.live(seconds, pause=seconds / 3)

    @rule(number=_few, service=st.sampled_from(SERVICES), plan=plans())
    def run_service(self, number: int, service: str, plan: Plan | None) -> None:
        everyone = self.world.living
        if service not in ("tracker", "threads"):
            everyone = [process for process in everyone if service in process.services]
        if (process := self._any(everyone, number)) is not None:
            self.world.run(process, service, plan)

    @rule(service=st.sampled_from(SERVICES))
    def neighbour_runs(self, service: str) -> None:
        self.world.run(self.world.theirs.processes[0], service)

    # --- Callers --------------------------------------------------------------------------------

    @precondition(lambda self: self.world.living)
    @rule(number=_few, template=_templates, key=_keys, plan=plans())
    def submit(self, number: int, template: str, key: str | None, plan: Plan | None) -> None:
        process = self._caller(number)
        if process is not None and template in process.process.templates:
            used = [said for said in self.world.submitted if key and said.key == key]
            again = used[0] if used else None
            self.world.submit(process, template, key=key, again=again, plan=plan)

    @precondition(lambda self: self.world.living)
    @rule(number=_few, template=_templates, key=_keys, plan=plans())
    def acquire(self, number: int, template: str, key: str | None, plan: Plan | None) -> None:
        process = self._caller(number)
        if process is not None and template in process.process.templates:
            name = None if key is None else f"{key} {template}"
            self.world.acquire(process, template, key=name, ttl=20.0, plan=plan)

    @precondition(lambda self: self.world.living and self.world.held)
    @rule(number=_few, plan=plans())
    def upload_into(self, number: int, plan: Plan | None) -> None:
        held, process = self._held(number), self._caller(number)
        if held is None or process is None:
            return
        if held.lease.template in process.process.templates:
            self.world.submit(process, held.lease.template, into=held, plan=plan)

    @precondition(lambda self: self.world.held)
    @rule(number=_few)
    def upload_by_itself(self, number: int) -> None:
        if (held := self._held(number)) is not None:
            self.world.upload_by_itself(held)

    @precondition(lambda self: self.world.living and self.world.held)
    @rule(number=_few, plan=plans())
    def release(self, number: int, plan: Plan | None) -> None:
        held, process = self._held(number), self._caller(number)
        if held is not None and process is not None:
            self.world.release(process, held, plan)

    @precondition(lambda self: self.world.living and self.world.submitted)
    @rule(number=_few, plan=plans())
    def jobs(self, number: int, plan: Plan | None) -> None:
        known = [said for said in self.world.submitted if said.request is not None]
        said, process = self._any(known, number), self._caller(number)
        if said is not None and process is not None:
            self.world.jobs(process, said, plan)

    @precondition(lambda self: self.world.living and self.world.submitted)
    @rule(number=_few, hide=st.booleans())
    def cancel(self, number: int, hide: bool) -> None:
        known = [said for said in self.world.submitted if said.request is not None]
        said, process = self._any(known, number), self._caller(number)
        if said is not None and process is not None:
            self.world.cancel(process, said, hide=hide)

    # --- People and faults ----------------------------------------------------------------------

    @rule(incident=incidents())
    def strike(self, incident: Incident) -> None:
        incident.strike(self.world)

    @rule(variant=_variants)
    def configure(self, variant: Variant) -> None:
        self.world.incidents["configure"] += 1
        self.world.configure(variant)

    @precondition(lambda self: self.world.living)
    @rule(template=_templates, what=st.sampled_from(("pause", "drain", "prewarm", "resume")))
    def tell(self, template: str, what: str) -> None:
        if (process := self._caller(0)) is not None:
            self.world.tell(process, template, what)

    # --- What always holds ----------------------------------------------------------------------

    @invariant()
    def promises_are_kept(self) -> None:
        if hasattr(self, "promises"):
            self.promises.check()
            self.world.step += 1

    # --- Which ----------------------------------------------------------------------------------

    @staticmethod
    def _any(some: list[X], number: int) -> X | None:
        return some[number % len(some)] if some else None

    def _caller(self, number: int) -> Mortal | None:
        return self._any([each for each in self.world.living if not each.frozen], number)

    def _held(self, number: int) -> Held | None:
        return self._any(self.world.held, number)


class PostgresMachine(Machine):
    """What happens is the same, so a few sequences show what another dialect makes of it."""

    _blank = staticmethod(cache(PostgresBlank))


def _settings(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=40,
        derandomize=not EXAMPLES,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


TestMachine = pytest.mark.timeout(600)(Machine.TestCase)
TestMachine.settings = _settings(30)
TestPostgresMachine = pytest.mark.timeout(600)(PostgresMachine.TestCase)
TestPostgresMachine.settings = _settings(4)
