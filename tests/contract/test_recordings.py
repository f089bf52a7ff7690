"""The simulator against 178 exchanges recorded with a real CVAT 2.73.

Each recorded scenario is replayed in its order on a fresh simulator. Compared are the status,
the headers that clients go by, and the body: key for key, type for type, value for value, but
for what must differ from server to server (ids, dates, the host). Bodies of errors are compared
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from recording_replay import RECORDINGS, Answer, Replay, load
from recording_scenes import KINDS, RECORDED_HOOK, SCENES, write_share
from support.served import Delivered, receiver

from pool.simulator import SimulatorServer, SimulatorSettings, Timings

SCENARIOS = sorted(path.stem for path in RECORDINGS.glob("*.json"))

#: Values that are not compared in some exchanges, and why. Their types still are.
IGNORED: dict[str, tuple[frozenset[str], str]] = {
    "about": (frozenset({"description"}), "the simulator says of itself what it is"),
    "read-only token reads": (frozenset({"count"}), "the recorded server had 738 tasks"),
    "bad sort": (frozenset({"count"}), "the recorded server had 786 tasks"),
    "list by status": (frozenset({"count"}), "the recorded server had 285 finished requests"),
    "labels of it": (frozenset({"color"}), "default colours come from another hash of the name"),
    "access token about itself": (frozenset({"name"}), "the token's name is ours"),
}

#: Exchanges that differ from the recording in a way that is accepted, and why: none.
DIFFERENT: dict[str, str] = {}


@dataclass
class Scenario:
    """A replayed scenario: what was recorded, what was answered, what the receiver got."""

    replay: Replay
    recorded: list[dict[str, Any]]
    answers: list[Answer]
    differences: list[list[str]]
    delivered: list[Delivered]


def _cases() -> Iterator[Any]:
    for scenario in SCENARIOS:
        for number, entry in enumerate(load(scenario)):
            if "request" in entry:
                yield pytest.param(scenario, number, id=f"{scenario}::{number} {entry['name']}")


def _replay(scenario: str, share: Path) -> Scenario:
    recorded = [entry for entry in load(scenario) if "request" in entry]
    scene = SCENES[scenario]
    settings = SimulatorSettings(timings=Timings.zero(), share=share)
    answers, differences = [], []
    with receiver() as (hook, delivered), SimulatorServer(settings) as server:
        replay = Replay(server, texts={RECORDED_HOOK: hook}, kinds=KINDS)
        scene.begin(replay)
        for exchange in recorded:
            name = exchange["name"]
            if name in scene.before:
                scene.before[name](replay)
            if name not in scene.unfinished:
                server.wait_idle()
            answer = replay.send(exchange)
            ignored, _ = IGNORED.get(name, (frozenset(), ""))
            answers.append(answer)
            # Compared at once: what an id stands for may be learned anew later.
            differences.append(replay.compare(exchange["response"], answer, ignored))
        server.wait_idle()
        replay.close()
    return Scenario(replay, recorded, answers, differences, delivered)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    """The scenarios replayed so far; each is replayed when its first exchange is asked for."""
    return {}


@pytest.fixture
def replayed(scenarios: dict[str, Scenario], tmp_path: Path) -> Any:
    def get(scenario: str) -> Scenario:
        if scenario not in scenarios:
            scenarios[scenario] = _replay(scenario, write_share(tmp_path / "share"))
        return scenarios[scenario]

    return get


@pytest.mark.parametrize(("scenario", "number"), list(_cases()))
def test_answers_as_recorded(
    scenario: str, number: int, replayed: Callable[[str], Scenario]
) -> None:
    differences = replayed(scenario).differences[number]
    name = f"{scenario}::{load(scenario)[number]['name']}"
    if name in DIFFERENT:
        assert differences, f"{name} is as recorded now: take it off the list of differences"
    else:
        assert not differences, "\n".join(differences)


def test_all_exchanges_are_replayed() -> None:
    assert len(list(_cases())) == 178
    assert set(SCENES) == set(SCENARIOS)


def test_webhooks_are_delivered_as_recorded(replayed: Callable[[str], Scenario]) -> None:
    scenario = replayed("webhooks")
    recorded = load("webhooks")[-1]["deliveries"]
    got: list[Delivered] = scenario.delivered
    assert [d.json["event"] for d in got] == [d["body"]["event"] for d in recorded]
    for expected, delivery in zip(recorded, got, strict=True):
        assert delivery.signed_with("recording-secret")
        assert delivery.headers["Content-Type"] == expected["headers"]["Content-Type"]
        scenario.replay.learn_ids(expected["body"], delivery.json)
        differences = scenario.replay.differences(expected["body"], delivery.json, frozenset())
        assert not differences, "\n".join(differences)
