"""What holds for every test: GPU tests run only where asked for, and on CI nothing may skip."""

import os
from collections.abc import Iterator

import pytest

from tests.smollm2 import smollm2

__all__ = ["smollm2"]
SKIPPED: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of real GPUs out unless `-m gpu` asks for them."""
    if "gpu" in config.getoption("-m"):
        return
    kept = [item for item in items if "gpu" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "gpu" in item.keywords])
    items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        SKIPPED.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """On CI a test that skips has tested nothing: the run fails and says which."""
    if os.environ.get("CI") and SKIPPED and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and SKIPPED:
        terminalreporter.section("skipped on CI, which fails the run")
        for line in SKIPPED:
            terminalreporter.line(line)
