"""`plan completion SHELL`: the script that makes bash, zsh or fish complete options, GPUs and models."""

import click

from planner.commands.parameters import VERBOSE, Read
from planner.options import choice
from planner.report.paint import write

SHELLS = ("bash", "zsh", "fish")
HELP = """Print the completion script of a shell: bash, zsh or fish.

\b
  plan completion bash >> ~/.bashrc
  plan completion zsh  >> ~/.zshrc
  plan completion fish > ~/.config/fish/completions/plan.fish
"""


def _run(shell: str, verbose: bool) -> int:
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    if completion is None:  # click knows all three
        raise ValueError(f"click completes no {shell}")
    root = click.get_current_context().find_root().command
    maker = completion(root, {}, "plan", "_PLAN_COMPLETE")
    # source() of bash would start bash to ask for its version: the user's may be another one.
    write((maker.source_template % maker.source_vars()).strip())
    return 0


command = click.Command(
    "completion",
    help=HELP,
    short_help="Print the completion script of a shell.",
    callback=_run,
    params=[click.Argument(["shell"], type=Read(choice(lambda: SHELLS), "SHELL", lambda: SHELLS)), VERBOSE],
)
