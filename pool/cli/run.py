"""``cvat-pool run``, the daemon, and ``check``, whether it can run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pool.cli.options import ConfigOption, JsonOption, settings_of
from pool.cli.output import counted, print_results

if TYPE_CHECKING:
    from pool.check import CheckResult


def run(config: ConfigOption = None) -> None:
    """Run the daemon: keep the pools filled and serve callers, until SIGTERM or Ctrl-C.

    Logs to standard error; --log-level debug shows more, --log-json is for programs.
    """
    from pool.daemon import Daemon, leave

    daemon = Daemon(settings_of(config), api_token=os.environ.get("POOL_API_TOKEN"))
    daemon.install_signals()
    daemon.run()
    leave()


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check what the daemon needs: configuration, store, port, credentials, server, templates.

    Creates and deletes one task of each template, and fills a slot of those that have some.
    """
    from pool.check import mistakes, run_checks
    from pool.clock import SystemClock
    from pool.config.loader import InvalidConfig

    def checks() -> Iterator[CheckResult]:
        try:
            settings = settings_of(config)
        except InvalidConfig as error:
            yield from mistakes(error)
        else:
            yield from run_checks(settings, environ=os.environ, clock=SystemClock())

    results: list[CheckResult] = []

    def noted() -> Iterator[CheckResult]:
        for result in checks():
            results.append(result)
            yield result

    try:
        print_results(
            noted(),
            _text,
            lambda result: {
                "name": result.name,
                "ok": result.ok,
                "detail": result.words,
                "warnings": result.warnings,
            },
            as_json=as_json,
        )
    finally:
        if not as_json:
            print(_summary(results))


def _text(result: CheckResult) -> str:
    mark = "ok  " if result.ok else "FAIL"
    lines = [f"{mark}  {result.name}: {result.words}"]
    return "\n".join(lines + [f"warn  {warning}" for warning in result.warnings])


def _summary(results: Sequence[CheckResult]) -> str:
    """Return how many checks have passed or failed."""
    from pool.config.loader import InvalidConfig

    failed = sum(not result.ok for result in results)
    if any(isinstance(result.error, InvalidConfig) for result in results):
        return f"{counted(failed, 'mistake')} in the configuration"
    warnings = sum(len(result.warnings) for result in results)
    done = counted(len(results), "check")
    words = f"{failed} of {done} failed" if failed else f"{done} passed"
    return f"{words}, {counted(warnings, 'warning')}" if warnings else words
