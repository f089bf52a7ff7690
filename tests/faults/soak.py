"""A long storm, by hand: ``python tests/faults/soak.py --kills 500 --weather``; or hosts that fail:
``python tests/faults/soak.py --hosts 600``. Prints its counts.

Exits with 1 when anything was handed out twice, lost, left behind or touched.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.postgres import PostgresServer

from faults.reckoning import Outcome
from faults.storm import CALLERS, Storm
from faults.two_hosts import TwoHosts
from faults.weather import ALL, FOR_SLOTS, MILD

#: As a server is where it counts.
SAFE = {"fsync": "on", "full_page_writes": "on", "autovacuum": "on"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--callers", type=int, default=CALLERS, help="processes at the same time")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two kills")
    parser.add_argument(
        "--weather",
        nargs="*",
        metavar="KIND",
        help=f"what goes wrong beside: mild, or some of {', '.join(ALL)}; all without any",
    )
    parser.add_argument(
        "--postgres", action="store_true", help="keep the rows in PostgreSQL, and kill that, too"
    )
    parser.add_argument("--grouping", action="store_true", help="have requests share tasks")
    parser.add_argument(
        "--slots",
        action="store_true",
        help="have the data go into slots on a share; with --weather, that comes and goes, too",
    )
    parser.add_argument(
        "--hosts",
        type=float,
        metavar="SECONDS",
        help="instead, have two daemons and PostgreSQL on hosts of their own, which fail for about "
        "so long: a daemon is killed, another one cut off for a minute, one cut off from CVAT, "
        "PostgreSQL killed",
    )
    parser.add_argument(
        "--shared-spool",
        action="store_true",
        help="with --hosts: have the data of requests where both daemons can read it",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep diaries, logs and the store here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        place = arguments.keep or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        outcome = _outcome(arguments, place)
    print(json.dumps(outcome.summary(), indent=2))
    for what in outcome.wrong:
        print(what, file=sys.stderr)
    return 1 if outcome.wrong else 0


def _outcome(arguments: argparse.Namespace, place: Path) -> Outcome:
    if arguments.hosts is not None:
        hosts = TwoHosts(
            place,
            seed=arguments.seed,
            away=60.0,
            pause=10.0,
            shared=arguments.shared_spool,
            safe=SAFE,
        )
        return hosts.run(arguments.hosts)
    database = PostgresServer(SAFE) if arguments.postgres else None
    try:
        storm = Storm(
            place,
            seed=arguments.seed,
            callers=arguments.callers,
            weather=_kinds(arguments.weather, FOR_SLOTS if arguments.slots else ALL),
            database=database,
            grouping="auto" if arguments.grouping else "off",
            slots=arguments.slots,
        )
        return storm.blow(kills=arguments.kills, pause=arguments.pause)
    finally:
        if database is not None:
            database.remove()


def _kinds(given: list[str] | None, everything: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return ()
    if not given:
        return everything
    return MILD if given == ["mild"] else tuple(given)


if __name__ == "__main__":
    sys.exit(main())
