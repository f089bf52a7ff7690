"""Templates with slots on a simulated share, and what tests ask of their pool and of CVAT."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from PIL import Image

from pool.config.settings import SLOT_FORMATS, PoolSettings, SlotSettings, Template
from pool.cvat import CvatClient
from pool.daemon import Daemon
from pool.model import PooledTask, TaskState
from pool.process import Process
from pool.requests.slot_storage import SlotStorage
from pool.simulator import CloudStorageSettings, SimulatorServer, SimulatorSettings, Timings
from pool.store import Store
from support.api import in_thread, settings_for
from support.simulated import client_of
from support.waiting import wait_until

Colour = tuple[int, int, int]

SIZE: Final = (64, 48)
#: Told from each other, and from a placeholder, also after they were compressed.
RED, GREEN, BLUE = (250, 10, 10), (10, 200, 10), (10, 10, 250)
COLOURS: Final = {"red": RED, "green": GREEN, "blue": BLUE}
#: The cloud storage that the server can reach, whatever is in it.
CACHE_STORAGE: Final = 1
#: The folder of the share that the pool has.
FOLDER: Final = "pool"


@contextmanager
def slot_server(**settings: Any) -> Iterator[SimulatorServer]:
    """A simulated CVAT with a share (:attr:`SimulatorServer.share`) and a cloud storage, whose
    naming drops what it has cached."""
    given = {
        "timings": Timings.zero(),
        "cloud_storages": (CloudStorageSettings(display_name="any"),),
        **settings,
    }
    with SimulatorServer(SimulatorSettings(**given)) as server:
        yield server


def slot_settings(share: Path, *, marked: bool = True, **slots: Any) -> SlotSettings:
    """Slots whose files stand in a folder of a share, which is marked, unless it is said not to
    be; further keys as in the configuration."""
    given = {
        "size": "x".join(map(str, SIZE)),
        "storage": f"file://{share / FOLDER}",
        "server": f"share:{FOLDER}",
        "cache_storage": CACHE_STORAGE,
        **slots,
    }
    settings = SlotSettings(**given)
    if marked:
        SlotStorage(settings, "any").mark()
    return settings


def slot_template(
    share: Path,
    *,
    name: str = "camera",
    per_task: int = 3,
    frames: int = 1,
    pool: PoolSettings | None = None,
    marked: bool = True,
    slots: dict[str, Any] | None = None,
    **template: Any,
) -> Template:
    """A template with slots on a share, two carriers of which are wanted unless its pool is
    given."""
    settings = slot_settings(
        share, marked=marked, per_task=per_task, frames=frames, **(slots or {})
    )
    given = {"labels": ({"name": "car"},), **template}
    return Template(
        name=name,
        pool=pool or PoolSettings(min_size=2 * per_task, max_size=10 * per_task, max_wait=5.0),
        slots=settings,
        **given,
    )


def slot_table(settings: SlotSettings) -> str:
    """The ``slots`` of a template in ``config.toml``."""
    pairs = (
        f"{key} = {value if isinstance(value, int) else repr(value)}"
        for key, value in asdict(settings).items()
        if value is not None and key != "stream_idle"
    )
    return f"slots = {{ {', '.join(pairs)} }}"


def picture_of(
    colour: Colour | str = RED, *, size: tuple[int, int] = SIZE, format: str = "jpg"
) -> bytes:
    """A picture of one colour, by its name or its values."""
    stream = io.BytesIO()
    values = COLOURS[colour] if isinstance(colour, str) else colour
    Image.new("RGB", size, values).save(stream, SLOT_FORMATS[format])
    return stream.getvalue()


def colour_of(content: bytes) -> str:
    """The name of the colour of a picture; "" where it has none of them, as a placeholder."""
    with Image.open(io.BytesIO(content)) as image:
        pixel = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    distances = {
        name: sum(abs(a - b) for a, b in zip(pixel, values, strict=True))
        for name, values in COLOURS.items()
    }
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] < 60 else ""


def colours_of(cvat: CvatClient, task_id: int, number: int) -> set[str]:
    """The colours that CVAT shows of a frame: one, if both qualities are of the same picture."""
    return {
        colour_of(cvat.frame(task_id, number, quality)) for quality in ("compressed", "original")
    }


@contextmanager
def slot_daemon(
    server: SimulatorServer,
    store_url: str,
    *templates: Template,
    spool: Path | None = None,
    **daemon: Any,
) -> Iterator[Daemon]:
    """A daemon on a thread of this process, all services of which run; further settings are those
    of ``[daemon]``."""
    settings = settings_for(server.url, store_url, *templates, spool=spool, **daemon)
    with client_of(server) as cvat, in_thread(Daemon(settings, cvat=cvat)) as running:
        yield running


def warm_slots(process: Process, name: str = "camera") -> int:
    """How many slots of a template can be handed out."""
    template = process.templates[name]
    return process.store.warm_of(name, template.fingerprint)


def wait_for_slots(process: Process, count: int = 1, name: str = "camera") -> None:
    """Return once so many slots of a template are warm."""
    wait_until(process.store, lambda: warm_slots(process, name) >= count)


def carriers_of(store: Store, name: str = "camera") -> list[PooledTask]:
    """The carriers of a template whose slots are warm or in use, oldest first."""
    found = store.tasks(template=name, states=(TaskState.READY,))
    return [task for task in found if task.slots]
