"""The entry point: runs the command line and turns every bad end into one line on stderr and an exit code."""

import errno
import gc
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from estimators.errors import PlanError

if TYPE_CHECKING:
    from click import NoSuchOption

BUG, BAD_USE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
COMPLETION = "_PLAN_COMPLETE"
"""The shell's completion script sets it, and asks by it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `plan` and returns its exit code; never raises."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _never_fail_to_print()
        with _without_collecting():
            code = _run(typed)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _leave_the_pipe()
    except PlanError as error:
        return _end(f"error: {error}", error.exit_code)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT):
            return _end(f"error: cannot write the result: {error.strerror}", BUG)
        return _own_fault(error, typed)
    except Exception as error:
        return _own_fault(error, typed)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """A plan takes a fraction of a second and drops next to nothing: looking for garbage would be 4 % of that time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _never_fail_to_print() -> None:
    """A name that the output's encoding lacks is shown with question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(arguments: list[str]) -> int:
    """Click's own errors are those of the one who typed. (Its main() would swallow a broken pipe.)"""
    import click

    from planner.cli import command

    if instruction := os.environ.get(COMPLETION):
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, "plan", COMPLETION, instruction)
    try:
        with command.make_context("plan", arguments) as context:
            code = command.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.NoSuchOption as error:
        return _end(f"error: unknown option {error.option_name[:60]!a}{_nearest_option(error)}", BAD_USE)
    except click.ClickException as error:
        return _end(f"error: {_one_line(error.format_message())} (--help shows every option)", BAD_USE)
    return code if isinstance(code, int) else 0


def _one_line(message: str) -> str:
    words = " ".join(message.split()).rstrip(".")
    return words[:1].lower() + words[1:]


def _nearest_option(error: "NoSuchOption") -> str:
    """The likeliest of the options that click finds similar."""
    import difflib

    nearest = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else " (--help shows every option)"


def _end(message: str, code: int) -> int:
    from planner.report.paint import say

    with suppress(OSError):  # nobody listens
        say(message)
    return code


def _leave_the_pipe() -> int:
    """Whoever read us has gone: leave as other Unix tools do, without Python's own complaint at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _own_fault(error: Exception, arguments: Sequence[str]) -> int:
    if "--verbose" in arguments or "-v" in arguments:
        import traceback

        traceback.print_exc()
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "this is a bug in plan, please report it (run with --verbose for the trace)"
    return _end(f"error: {name}: {hint}", BUG)


if __name__ == "__main__":
    sys.exit(main())
