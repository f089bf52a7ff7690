"""Schemathesis over the OpenAPI document: no 5xx, and no answer outside the document.

    python tests/integration/test_http_schemathesis.py --examples 400

runs more of it: so many for each operation, some 5,000 in all with the default.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS as KNOWN
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from support.api import Serving, serving, settings_for

from pool.config.settings import PoolSettings, Template
from pool.simulator import SimulatorServer, SimulatorSettings, Timings

#: Cases of each operation in the tests, and in a long run.
EXAMPLES = 12
MANY = 320
#: A stream has no end.
LEFT_OUT = ("/v1/events",)
#: What the document promises, and nothing about what data means: that a template's max_size is
#: exceeded, or that a frame comes before another, no schema says.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
#: The name in the document's examples, so that some of the cases get further than to a 404.
TEMPLATE = Template(name="street-scenes", pool=PoolSettings(min_size=1, max_size=50, max_wait=0.01))


def lead(case: Any, known: dict[str, str]) -> None:
    """Have a case get further than to an id or a name that there is not. Callers do not wait."""
    if "Prefer" in (case.headers or {}):
        case.headers["Prefer"] = "wait=0"
    if case.meta.generation.mode is GenerationMode.NEGATIVE:
        return
    named = {
        "name": TEMPLATE.name,
        "lease_id": known.get("/v1/leases"),
        "request_id": known.get("/v1/requests"),
    }
    for parameter in case.path_parameters or {}:
        case.path_parameters[parameter] = named[parameter] or case.path_parameters[parameter]
    if isinstance(case.body, dict) and "template" in case.body:
        case.body["template"] = TEMPLATE.name


def run(served: Serving, examples: int, mode: GenerationMode) -> Counter[int]:
    """Raise what the checks find; answers how often there was each status."""
    document = served.api.checker.document
    schema = schemathesis.openapi.from_dict(dict(document))
    schema.config.update(base_url=served.url)
    load_all_checks()
    checks = [KNOWN.get_one(name) for name in CHECKS]
    statuses: Counter[int] = Counter()
    known: dict[str, str] = {}

    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found.err()
        operation = found.ok()
        if operation.path in LEFT_OUT:
            continue

        def call(case: Any) -> None:
            lead(case, known)
            answer = case.call_and_validate(checks=checks, timeout=20)
            statuses[answer.status_code] += 1
            if answer.status_code in (201, 202):
                known[case.operation.path] = answer.json()["id"]

        many = hypothesis.settings(
            max_examples=examples,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        # Nothing can be wrong with a call that has no parameters.
        with contextlib.suppress(Unsatisfiable):
            hypothesis.given(operation.as_strategy(generation_mode=mode))(many(call))()
    return statuses


@pytest.fixture(scope="module")
def served(
    simulator: SimulatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    store_url = f"sqlite:///{tmp_path_factory.mktemp('schemathesis') / 'pool.db'}"
    settings = settings_for(simulator.url, store_url, TEMPLATE)
    with serving(settings, simulator.access_token) as served:
        yield served


# It is the daemon's own threads that draw random numbers meanwhile.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_answer_is_outside_the_document(served: Serving, mode: GenerationMode) -> None:
    statuses = run(served, EXAMPLES, mode)
    assert statuses.total() >= 50
    assert max(statuses) < 500
    assert served.api.get("/healthz").status == 200


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--examples", type=int, default=MANY)
    examples = arguments.parse_args().examples
    with (
        SimulatorServer(SimulatorSettings(timings=Timings.zero())) as simulator,
        tempfile.TemporaryDirectory() as folder,
    ):
        settings = settings_for(simulator.url, f"sqlite:///{folder}/pool.db", TEMPLATE)
        with serving(settings, simulator.access_token) as served:
            total: Counter[int] = Counter()
            for mode in GenerationMode:
                total += run(served, examples, mode)
            print(f"{total.total()} cases: {dict(sorted(total.items()))}")
            print(f"left in the spool: {len(served.spooled())}")


if __name__ == "__main__":
    main()
