"""The versions that stand behind an answer. The metadata is read only when somebody asks: it takes a while."""

import platform

DISTRIBUTION = "finetune-plan"


def own_version() -> str:
    """The installed version; a checkout that was never installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """As a price carries them."""
    return {"plan": own_version(), "python": platform.python_version()}
