"""Which keys ``config.toml`` has, table by table, and what each of them takes.

A test compares the tables with the fields of :mod:`pool.config.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from pool.config import data_params
from pool.config.lines import Key
from pool.config.values import (
    Reader,
    choice,
    duration,
    flag,
    matching,
    replicas,
    secret_name,
    server_url,
    several,
    share,
    sink_url,
    size,
    store_url,
    tables,
    text,
    unknown_key,
    whole,
)
from pool.model import KINDS

CVAT: Final[Mapping[str, Reader]] = {
    "url": server_url,
    "organization": matching(
        "[A-Za-z0-9_-]{0,16}",
        "an organization's slug, at most 16 letters, digits, - and _ (its short name, as in CVAT's "
        'menu; "" is the personal workspace)',
    ),
    "timeout": duration(),
    "verify_tls": flag,
    "access_token_file": text(most=4096, blank=False),
    "profile": text(blank=False),
}
STORE: Final[Mapping[str, Reader]] = {
    "url": store_url,
    "keep_finished": duration(),
    "spool": text(most=4096, blank=False),
    "spool_limit": size,
}
DAEMON: Final[Mapping[str, Reader]] = {
    "host": matching(r"[0-9A-Za-z.:_-]+", 'a host name or an IP address, such as "127.0.0.1"'),
    "port": whole(0, 65535),
    "tick": duration(),
    "stop_timeout": duration(),
    "verify_every": duration(),
    "max_queued": whole(1),
    "max_body": size,
    "max_files": whole(1),
    "receive_timeout": duration(),
}
EVENTS: Final[Mapping[str, Reader]] = {"sinks": tables}
SINK: Final[Mapping[str, Reader]] = {
    "url": sink_url,
    "secret": secret_name,
    "secret_file": text(most=4096, blank=False),
    "templates": several(text(), "names of templates"),
    "kinds": several(choice(*KINDS), "kinds of events", least=1),
}
TASK: Final[Mapping[str, Reader]] = {
    "subset": text(most=64),
    "bug_tracker": text(most=2000),
    "segment_size": whole(0),
    "overlap": whole(0),
    "consensus_replicas": replicas,
    "assignee": whole(1),
}
DATA: Final[Mapping[str, Reader]] = data_params.READERS
POOL: Final[Mapping[str, Reader]] = {
    "min_size": whole(0),
    "max_size": whole(1),
    "hit_rate": share,
    "max_age": duration(),
    "on_empty": choice("wait", "create", "fail"),
    "max_wait": duration(zero=True),
    "create_concurrency": whole(1, 32),
    "lease_ttl": duration(),
    "on_change": choice("recreate", "replenish"),
}
IMPORT: Final[Mapping[str, Reader]] = {
    "timeout": duration(),
    "grouping": choice("off", note="; other values are not available in this version"),
    "single_request_limit": size,
    "upload_concurrency": whole(1, 16),
}
#: The tables inside a template, and those of them that [defaults] speaks for.
TEMPLATE_TABLES: Final = {"task": TASK, "data": DATA, "pool": POOL, "import": IMPORT}
DEFAULT_TABLES: Final = ("pool", "import", "data")

TOP_TABLES: Final = ("cvat", "store", "daemon", "events", "defaults", "templates")
LABEL_SOURCES: Final = ("labels", "labels_file", "project")
TEMPLATE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CREDENTIALS: Final = re.compile(
    r"(?:.*_)?(?:token|password|passwd|secret|username|user|login|credentials?|api_?key|pat)", re.I
)


def explain_unknown(key: Key, known: Iterable[str]) -> str:
    """What to say about a key that does not belong where it stands, among the ``known``."""
    name = str(key[-1])
    if _CREDENTIALS.fullmatch(name):
        if key[0] == "daemon":
            return "tokens never stand here: set POOL_API_TOKEN in the environment"
        if key[0] == "events":
            return (
                'credentials never stand here: secret = "${NAME}" names a variable that holds one'
            )
        return (
            "credentials never stand here: set CVAT_ACCESS_TOKEN, or CVAT_USERNAME and "
            "CVAT_PASSWORD, in the environment, or use access_token_file, or profile for a "
            "profile that cvat-cli has saved"
        )
    if name in data_params.SOURCES:
        return data_params.explain_unknown(name)
    # Elsewhere than in a template, only the defaults of a task are a likely slip.
    candidates = {"templates": tuple(TEMPLATE_TABLES), "defaults": ("task",)}.get(str(key[0]), ())
    for table in candidates:
        if name in TEMPLATE_TABLES[table]:
            return f"unknown key here; it belongs in a template's table {table} = {{ … }}"
    return unknown_key(name, known)
