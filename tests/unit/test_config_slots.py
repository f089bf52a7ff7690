"""Slots in ``config.toml``."""

from __future__ import annotations

import pytest
from support.configured import cars, only_problem, problems

CARS = '[templates.cars]\nlabels = [{ name = "car" }]\n'
SHARE = {
    "size": '"640x480"',
    "storage": '"file:///mnt/share/pool"',
    "server": '"share:pool"',
    "cache_storage": "3",
}
BUCKET = {"size": '"640x480"', "storage": '"s3://bucket/pool"', "server": '"cloud:7"'}


def slots(given: dict[str, str], **others: str) -> str:
    pairs = ", ".join(f"{name} = {value}" for name, value in {**given, **others}.items())
    return f"slots = {{ {pairs} }}\n"


def test_slots_on_a_share_and_in_a_bucket() -> None:
    share = cars(slots(SHARE, frames="2", per_task="50", format='"png"')).slots
    assert share is not None
    assert (share.dimensions, share.share_path, share.cloud_id) == ((640, 480), "pool", None)
    assert (share.frames, share.per_task, share.format, share.drops_with) == (2, 50, "png", 3)
    bucket = cars(slots(BUCKET)).slots
    assert bucket is not None
    assert (bucket.share_path, bucket.cloud_id, bucket.drops_with) == (None, 7, 7)
    other = cars(slots(BUCKET, cache_storage="8")).slots
    assert other is not None and other.drops_with == 8


def test_the_fingerprint_follows_what_a_carrier_is_made_by() -> None:
    plain, with_slots = cars(), cars(slots(SHARE))
    assert with_slots.fingerprint != plain.fingerprint == with_slots.ordinary.fingerprint
    assert cars(slots(SHARE, per_task="2")).fingerprint != with_slots.fingerprint
    assert cars(slots({**SHARE, "cache_storage": "4"})).fingerprint == with_slots.fingerprint
    assert cars(slots(SHARE, stream_idle='"1m"')).fingerprint == with_slots.fingerprint


def test_what_fits_into_no_slot_never_waits_for_one() -> None:
    ordinary = cars(slots(SHARE) + 'pool = { on_empty = "fail" }').ordinary
    assert ordinary.slots is None
    assert (ordinary.pool.on_empty, ordinary.pool.max_wait) == ("create", 0.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**SHARE, "size": '"640"'}, "width and height"),
        ({**SHARE, "size": '"0x480"'}, "width and height"),
        ({**SHARE, "format": '"gif"'}, "one of"),
        ({**SHARE, "per_task": "501"}, "from 1 to 500"),
        ({**SHARE, "frames": "1000", "per_task": "6"}, "above 5000"),
        ({**SHARE, "storage": '"s3://bucket/pool"'}, "the same place"),
        ({**SHARE, "storage": '"file://relative"'}, "file:///"),
        ({**SHARE, "storage": '"file:///a/../b"'}, "file:///"),
        ({**SHARE, "server": '"share:../pool"'}, '".."'),
        ({**SHARE, "server": '"pool"'}, "share:PATH"),
        ({**BUCKET, "server": '"cloud:0"'}, "share:PATH"),
        ({name: SHARE[name] for name in ("size", "storage", "server")}, "cache_storage is missing"),
        ({"size": '"640x480"'}, "storage and server is missing"),
        ({**SHARE, "formta": '"jpg"'}, "did you mean format?"),
    ],
)
def test_slots_that_cannot_be(given: dict[str, str], words: str) -> None:
    problem = only_problem(CARS + slots(given))
    assert words in problem.message and problem.key.startswith("templates.cars.slots")


def test_a_task_with_more_slots_than_the_pool_may_have() -> None:
    pool = "pool = { min_size = 5, max_size = 20 }"
    assert cars(slots(SHARE, per_task="20") + pool).slots is not None
    problem = only_problem(CARS + slots(SHARE, per_task="21") + pool)
    assert problem.key == "templates.cars.slots.per_task"
    assert problem.message == "per_task, 21, is above the pool's max_size, 20, which counts slots"


def test_a_key_in_the_address_of_a_storage_is_never_shown() -> None:
    (problem,) = problems(CARS + slots({**BUCKET, "storage": '"s3://AKIA:hunter2@bucket/p"'}))
    assert "credentials never stand here" in problem.message
    assert "hunter2" not in problem.message


@pytest.mark.parametrize(
    "other",
    [
        "task = { segment_size = 5 }",
        "task = { consensus_replicas = 2 }",
        "data = { use_cache = false }",
        "data = { copy_data = true }",
        'data = { sorting_method = "random" }',
        'data = { storage_method = "file_system" }',
    ],
)
def test_what_does_not_go_with_slots(other: str) -> None:
    problem = only_problem(CARS + slots(SHARE) + other)
    assert "placeholder" in problem.message
    assert other.split("{ ")[1].split(" ")[0] in problem.key
