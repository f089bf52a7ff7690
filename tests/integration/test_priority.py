"""Which of those that wait goes first: by priority, by age, by template; and what bulk leaves free.

The daemon's services run one by one, on a scripted CVAT and a clock that the test moves.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.scripted import ScriptedCvat
from support.stepped import IMPORTING, OTHER, QUEUED, READY, Start, Stepped, grouped

from pool.config.settings import Template
from pool.requests.order import AGED


def filled(daemon: Stepped, cvat: ScriptedCvat) -> Stepped:
    daemon.fill()
    cvat.calls.clear()
    return daemon


def busy(daemon: Stepped, **more: Any) -> str:
    """A request that has gone at once, so that the server is busy with it."""
    request = daemon.accept(name="first.jpg", **more)
    daemon.drain()
    assert daemon.states(request) == {IMPORTING}
    return request


def alone(number: int) -> dict[str, str]:
    """Parameters that no other request has, so that a request goes alone."""
    return {"params": f'{{"image_quality": {number}}}'}


def one_by_one(daemon: Stepped, requests: list[str]) -> list[str]:
    """Serve until none waits; return the requests in the order in which they went."""
    went: list[str] = []
    for _ in range(2 * len(requests)):
        daemon.import_all()
        # Whatever is sent before a place is free.
        daemon.advance(1.0)
        daemon.serve()
        sent = [each for each in requests if daemon.read(each).import_id and each not in went]
        went += sorted(sent, key=lambda each: daemon.read(each).handed_out_at or 0.0)
        if len(went) == len(requests):
            return went
    raise AssertionError("it does not end")


def test_the_higher_priority_goes_first(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template, priority="bulk")), cvat)
    busy(daemon)
    asked = ["", "normal", "interactive", "normal", "interactive"]
    requests = [
        daemon.accept(**alone(number), **({"priority": name} if name else {}))
        for number, name in enumerate(asked, start=1)
    ]
    assert daemon.read(requests[0]).priority == "bulk", "the template's"
    went = one_by_one(daemon, requests)
    assert [requests.index(each) for each in went] == [2, 4, 1, 3, 0]


def test_one_that_has_waited_for_long_goes_every_second_time(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template)), cvat)
    busy(daemon)
    old = [daemon.accept(**alone(number), priority="bulk") for number in (1, 2)]
    daemon.advance(AGED + 1.0)
    urgent = [daemon.accept(**alone(number), priority="interactive") for number in (3, 4, 5)]
    requests = [*old, *urgent]
    went = one_by_one(daemon, requests)
    assert [requests.index(each) for each in went] == [2, 0, 3, 1, 4]


def test_templates_take_turns(start: Start, template: Template, cvat: ScriptedCvat) -> None:
    many, other = grouped(template, group_requests=10), grouped(OTHER)
    daemon = filled(start(many, other), cvat)
    busy(daemon)
    requests = [daemon.accept() for _ in range(40)]
    last = daemon.accept("other")
    went = one_by_one(daemon, [*requests, last])
    assert went.index(last) <= 10, "behind one group of the other template at most"
    assert daemon.states(last, *requests[:10]) == {READY}


def test_the_higher_priority_goes_first_whatever_its_template(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template), grouped(OTHER)), cvat)
    busy(daemon)
    normal = daemon.accept("other")
    urgent = [daemon.accept(**alone(number), priority="interactive") for number in (1, 2)]
    assert one_by_one(daemon, [normal, *urgent]) == [*urgent, normal]


@pytest.mark.parametrize("places", [1, 2, 3])
def test_bulk_leaves_a_place_free(
    start: Start, template: Template, cvat: ScriptedCvat, places: int
) -> None:
    daemon = filled(start(grouped(template, concurrency=places), workers=8), cvat)
    bulk = [daemon.accept(**alone(number), priority="bulk") for number in range(1, 5)]
    daemon.advance(1.0)
    daemon.serve()
    under_way = [each for each in bulk if daemon.states(each) == {IMPORTING}]
    assert len(under_way) == max(1, places - 1)
    assert daemon.states(*bulk[len(under_way) :]) == {QUEUED}
    urgent = daemon.accept(**alone(9), priority="interactive")
    daemon.advance(1.0)
    daemon.serve()
    assert daemon.states(urgent) == {IMPORTING if places > 1 else QUEUED}
    daemon.import_all()
    daemon.advance(1.0)
    daemon.serve()
    assert daemon.states(urgent) <= {IMPORTING, READY}, "before the rest of bulk"


def test_a_group_of_bulk_is_a_predicted_second_of_the_server(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template, group_requests=500)), cvat)
    busy(daemon)
    for _ in range(220):
        daemon.accept(priority="bulk")
    urgent = daemon.accept(priority="interactive")
    for _ in range(3):
        daemon.import_all()
        daemon.advance(1.0)
        daemon.serve()
    sizes = [len(call[2].files) for call in cvat.calls if call[0] == "upload"]
    assert (len(sizes), sizes[:2], sum(sizes)) == (4, [1, 1], 222)
    assert 100 < sizes[2] < 200, "141 on the server of CVAT.md"
    assert daemon.states(urgent) == {READY}


def test_a_slower_server_gets_smaller_groups_of_bulk(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template)), cvat)
    busy(daemon)
    for _ in range(60):
        daemon.accept(priority="bulk")
    # Four times as long as was predicted.
    daemon.advance(0.6)
    for _ in range(2):
        daemon.import_all()
        daemon.advance(1.0)
        daemon.serve()
    first, second, *_ = [len(call[2].files) for call in cvat.calls if call[0] == "upload"]
    assert first == 1 and 5 < second < 30
