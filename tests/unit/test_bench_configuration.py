"""The configuration that a bench writes for its daemon says what the template says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pool.bench.configuration import sized, write_configuration
from pool.config.data_params import DataParams
from pool.config.loader import load
from pool.config.settings import (
    CvatSettings,
    ImportSettings,
    PoolSettings,
    TaskSettings,
    Template,
)

SERVER = CvatSettings(
    url="https://cvat.example.com",
    organization="lab",
    timeout=12.5,
    verify_tls=False,
    access_token_file=Path("/run/secrets/a token"),
)
TEMPLATE = Template(
    name='odd "names" are not kept',
    labels=(
        {"name": "car", "type": "rectangle", "attributes": []},
        {"name": "péople\\", "type": "any", "attributes": []},
    ),
    task=TaskSettings(subset='the "first"', segment_size=10, overlap=2),
    data=DataParams(image_quality=95, chunk_size="auto", use_cache=True, frame_filter="step=2"),
    pool=PoolSettings(min_size=3, hit_rate=0.95, max_wait=0.25, create_concurrency=4),
    importing=ImportSettings(timeout=90.0, single_request_limit=1000),
    server=SERVER,
)


VALIDATION: Any = {
    "validation_params": {"mode": "gt", "frame_selection_method": "manual", "frames": ["a.png"]}
}


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        replace(TEMPLATE, labels=(), project=12),
        replace(TEMPLATE, data=DataParams(image_quality=70, chunk_size=8)),
        replace(TEMPLATE, data=DataParams(image_quality=70, chunk_size=8, **VALIDATION)),
        Template(name="plain", server=SERVER),
    ],
)
def test_what_is_written_is_what_is_read(tmp_path: Path, template: Template) -> None:
    there = sized(template, name="bench-it.2", tasks=25)
    settings = load(write_configuration(tmp_path, SERVER, [there]))
    assert settings.cvat == SERVER
    assert settings.store.url == f"sqlite:///{tmp_path}/pool.db"
    assert settings.daemon.port == 0
    assert settings.templates == {"bench-it.2": there}


def test_the_tasks_are_those_of_the_template(tmp_path: Path) -> None:
    there = sized(TEMPLATE, name="bench", tasks=7)
    (read,) = load(write_configuration(tmp_path, SERVER, [there])).templates.values()
    assert read.fingerprint == TEMPLATE.fingerprint
    assert (read.pool.min_size, read.pool.max_size) == (7, 7)
    assert read.pool.create_concurrency == 4
