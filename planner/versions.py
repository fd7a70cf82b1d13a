"""The versions that stand behind an answer. The metadata is read only when somebody asks: it takes a while."""

import platform

from estimators.price import Evidence

DISTRIBUTION = "finetune-plan"


def own_version() -> str:
    """The installed version; a checkout that was never installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"


def versions(evidence: Evidence = "formula") -> dict[str, str]:
    """As a price carries them: with the libraries whose code was executed, where the evidence is a dry run."""
    ours = {"plan": own_version(), "python": platform.python_version()}
    if evidence != "dry run":
        return ours
    from runners.dry.tracer import versions as of_libraries

    return {**ours, **of_libraries()}
