"""What each recorded scenario presupposes on the server, and what happens between its requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.recording_replay import Replay, content, numbered, tiny_png
from pool.simulator import SimulatorSettings, Timings, UserSettings

Step = Callable[[Replay], None]
RECORDED_HOOK = "http://127.0.0.1:8096/hook"
SETTINGS = SimulatorSettings(timings=Timings.zero())
#: The user of the longer recordings, whose id there is 1.
ADMINISTRATOR = UserSettings(username="admin", is_superuser=True, groups=("admin",))
_BY_ADMINISTRATOR = dataclasses.replace(
    SETTINGS, users=(dataclasses.replace(ADMINISTRATOR, email="admin@example.invalid"),)
)
ORDINARY = UserSettings(
    username="ordinary", email="ordinary@example.com", first_name="O", last_name="U"
)


def _nothing(_: Any) -> None:
    """There is nothing to prepare."""


@dataclass(frozen=True)
class Scene:
    """What a recording presupposes, and what happens between its exchanges."""

    begin: Step = _nothing
    #: What to do before the exchanges with these names.
    before: Mapping[str, Step] = field(default_factory=dict)
    #: Exchanges before which imports are not waited for: they show a state on the way.
    unfinished: frozenset[str] = frozenset()
    #: What lies on the share beside what the recording itself says.
    share: Callable[[Path], None] = _nothing
    settings: SimulatorSettings = SETTINGS
    #: Whether it has all headers of an answer that matter to a client.
    all_headers: bool = True
    #: Of a recording that goes from task to task: fields of tasks that are not plain, by the
    #: first exchange with each. Its exchanges with one task can be replayed without the others.
    tasks: Mapping[str, Mapping[str, Any]] | None = None
    #: The bucket that is there, on a server of its own.
    bucket: str | None = None
    #: Whether the recording's files are in the bucket, and not on the share.
    files_in_bucket: bool = False


def _task_by_task(
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    begin: Step = _nothing,
    share: Callable[[Path], None] = _nothing,
    users: tuple[UserSettings, ...] = (),
) -> Scene:
    """One of the longer recordings, by the administrator, from task to task."""

    def know_administrator(replay: Replay) -> None:
        replay.learn("users", 1, replay.server.simulator.owner.id)
        begin(replay)

    return Scene(
        begin=know_administrator,
        share=share,
        settings=dataclasses.replace(SETTINGS, users=(ADMINISTRATOR, *users)),
        all_headers=False,
        tasks=tasks or {},
    )


def _tasks(*recorded: int, **spec: Any) -> Step:
    def begin(replay: Replay) -> None:
        for number in recorded:
            replay.create_task(number, **spec)

    return begin


def _several(*steps: Step) -> Step:
    def begin(replay: Replay) -> None:
        for step in steps:
            step(replay)

    return begin


def _project(replay: Replay) -> None:
    # One before it, so that its id is 2, which a request of the recording has in its path.
    replay.post("/api/projects", {"name": "first"})
    project = replay.post("/api/projects", {"name": "recording", "labels": [{"name": "car"}]})
    replay.learn("projects", 2, project["id"])


def _two_tasks_and_a_finished_one(replay: Replay) -> None:
    replay.create_task()
    warm = replay.create_task(833, name="warm")
    replay.upload(warm, content(28000))


def _carrier(task: int, label: int) -> Step:
    """A task for slots, whose first label is known by its recorded id."""

    def begin(replay: Replay) -> None:
        state = replay.server.state
        replay.learn("users", 1, replay.server.simulator.owner.id)
        task_id = replay.create_task(task, name="slots")
        replay.learn("labels", label, state.tasks[task_id].label_ids[0])

    return begin


def _on_the_share(name: str, content: bytes | None) -> Step:
    def change(replay: Replay) -> None:
        path = replay.server.share / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return change


def _delete_bucket(replay: Replay) -> None:
    # Whose it is matters to the server, and not whether it is signed.
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/x"}
    answer = replay.http.request("DELETE", replay.bucket_url, headers=headers)
    assert answer.status == 204, answer.data


def _hold(at: str) -> Step:
    return lambda replay: replay.server.hold_imports(at)


def _release(replay: Replay) -> None:
    replay.server.release_imports()
    replay.server.wait_idle()


def _start_one(replay: Replay) -> None:
    """Two imports that are finished, and one that is under way and stays so."""
    for recorded in (876, 877):
        replay.upload(replay.create_task(recorded), content(28000))
    replay.server.wait_idle()
    replay.server.hold_imports("started")
    task_id = replay.create_task(878)
    replay.upload(task_id, content(28000))
    replay.server.wait_for(lambda state: state.requests[_request_id(task_id)].status == "started")


def _request_id(task_id: int) -> str:
    return f"action=create&target=task&target_id={task_id}"


def _hooked_imports(replay: Replay) -> None:
    """The imports that the webhooks of the recording tell of."""
    good = replay.create_task(879, name="hooked", project_id=replay.ours("projects", 2))
    replay.upload(good, content(28000), content(28500))
    replay.server.wait_idle()
    bad = replay.create_task(880, name="hooked, failing", project_id=replay.ours("projects", 2))
    replay.upload(bad, content(400, "garbage"))
    replay.server.wait_idle()


def _history(replay: Replay) -> None:
    """The ten newest tasks as they were when the pages were recorded."""
    _project(replay)
    replay.create_task()
    replay.upload(replay.create_task(876), content(4, "garbage"))
    replay.upload(replay.create_task(877), content(28000), content(28500), chunk_size="1")
    replay.upload(replay.create_task(878), content(28000))
    _hooked_imports(replay)
    for number in range(5):
        replay.create_task(881 + number, name=f"page {number}")


def _two_pictures(share: Path) -> None:
    (share / "rec").mkdir(parents=True)
    for name in ("0.jpg", "1.jpg"):
        (share / "rec" / name).write_bytes(content(28000))


def _tasks_with_jobs(replay: Replay) -> None:
    """Another user, and a task of each user's that has a job."""
    server = replay.server
    user = server.simulator.state.user_named("ordinary")
    assert user is not None
    replay.learn("users", 4, user.id)
    replay.other_token = server.call(lambda: server.simulator.add_token(user))
    for task, job, auth in ((1820, 1254, "pat"), (1825, 1255, "other")):
        replay.create_task(task, auth=auth, name="assignees")
        replay.upload(replay.ours("tasks", task), content(28000), auth=auth)
        server.wait_idle()
        replay.learn("jobs", job, max(server.state.jobs))


_SIX = {"files": 6}
#: The tasks of ``data_params.json`` that have more than two files, or fields of their own.
PARAMETERS: dict[str, dict[str, int]] = {
    "frame_filter on images": _SIX,
    "start and stop": _SIX,
    "start, stop, step": _SIX,
    "stop beyond the end": _SIX,
    "sorting_method random": _SIX,
    "mapping and segment_size": {"segment_size": 1},
    "mapping and overlap": {"overlap": 1},
    "mapping and consensus replicas": {"consensus_replicas": 2},
    "gt, 2 random frames": {"segment_size": 3, **_SIX},
    "gt, a share": _SIX,
    "gt, by name": _SIX,
    "gt, each job": {"segment_size": 3, **_SIX},
    "gt, more than there are": _SIX,
    "gt_pool, random sorting": {"segment_size": 3, **_SIX},
    "gt_pool, by name": {"segment_size": 2, **_SIX},
    "gt_pool, no segment_size": _SIX,
    "gt with overlap": {"segment_size": 3, "overlap": 1, **_SIX},
}


def _empty_folder(share: Path) -> None:
    (share / "rec" / "empty").mkdir()


def _thousands(share: Path) -> None:
    first, *others = (share / name for name in numbered(5001))
    first.write_bytes(tiny_png(16))
    for other in others:
        other.hardlink_to(first)


SCENES: dict[str, Scene] = {
    "server_and_auth": Scene(_two_tasks_and_a_finished_one),
    "create_task": Scene(_project),
    "empty_task": Scene(_tasks(844, name="empty one")),
    "upload_single_request": Scene(
        _several(_tasks(845, 846, 847), _hold("queued")),
        before={"data again while queued or done": _release},
        unfinished=frozenset({"one multipart request", "request right away", "jobs right away"}),
    ),
    "upload_start_multiple_finish": Scene(_tasks(848, 849, 850)),
    "upload_tus": Scene(_tasks(851)),
    "job_file_mapping": Scene(_several(_tasks(852, 853, 854), _tasks(855, segment_size=2))),
    "segments": Scene(
        _several(
            _tasks(856, segment_size=2), _tasks(857, segment_size=2, overlap=1), _tasks(858, 859)
        )
    ),
    "bad_data": Scene(_tasks(*range(860, 877))),
    "share": Scene(_tasks(877), share=_two_pictures),
    "requests": Scene(
        _start_one,
        before={"cancel a finished one": _release},
        unfinished=frozenset({"list by task", "list by status", "unknown id", "malformed id"}),
    ),
    "webhooks": Scene(_project, before={"deliveries": _hooked_imports}),
    "paging": Scene(_history),
    # From task to task
    "labels": _task_by_task(),
    "data_params": _task_by_task(PARAMETERS),
    "media": _task_by_task(),
    "assignees": _task_by_task(begin=_tasks_with_jobs, users=(ORDINARY,)),
    "names": _task_by_task(),
    "archives": _task_by_task({"segment_size": {"segment_size": 2}}),
    "manifest": _task_by_task(),
    "share_paths": _task_by_task(share=_empty_folder),
    "remote_urls": _task_by_task(),
    "groups": _task_by_task(share=_thousands),
    # A story each
    "slots": Scene(
        _carrier(2128, 4998),
        before={
            "a file that is gone, compressed": _on_the_share("rec-slots/2-0.jpg", None),
            "a file that is no image any more, compressed": _on_the_share(
                "rec-slots/2-0.jpg", b"no image"
            ),
        },
        settings=_BY_ADMINISTRATOR,
        all_headers=False,
    ),
    "slots_s3": Scene(
        _several(_carrier(2129, 5000), _tasks(2130, 2131)),
        settings=_BY_ADMINISTRATOR,
        all_headers=False,
        bucket="recording",
        files_in_bucket=True,
    ),
    "slots_drop": Scene(
        _carrier(2317, 0),
        before={"drop with a storage whose bucket is gone": _delete_bucket},
        settings=_BY_ADMINISTRATOR,
        all_headers=False,
        bucket="recording",
    ),
}

#: Uploads that are not what their names say.
KINDS = {
    "not an image": {"a.jpg": "garbage"},
    "truncated image": {"a.jpg": "truncated"},
    "unknown extension": {"a.xyz": "garbage"},
    "empty file": {"a.jpg": "garbage"},
    "one bad of two": {"b.jpg": "garbage"},
    "image and video": {"b.mp4": "garbage"},
    "failed once": {"a.jpg": "garbage"},
}
