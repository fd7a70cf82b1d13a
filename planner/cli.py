"""The command line: `plan` with its options, and the verbs beside it, each loaded only when it is called."""

import difflib
import gc
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from estimators.errors import BadInput
from planner.commands.parameters import option_name
from planner.commands.plan import SECTIONS, WORK, run

VERBS = (
    "calibrate",
    "completion",
    "estimate",
    "explain",
    "gpus",
    "history",
    "measure",
    "models",
    "probe",
    "report",
    "sweep",
)
HELP = """Say which fine-tuning recipe to run on the GPUs at hand, what it costs, and how sure that is.

\b
  plan --model llama-7b                                  on this machine's GPUs
  plan --model llama-3.1-8b --gpus 2xa100-80gb           on GPUs you might rent
  plan --model qwen2.5-14b --gpus rtx-4090 --method qlora,lora --tokens 10M

Exit codes: 0 fits, 1 a bug in plan, 2 bad input, 3 nothing fits, 4 no usable GPU where one is needed, 5 every trial out
of memory, 130 interrupted.
"""


class Verbs(click.Group):
    """`plan` and its verbs: a verb is the module of its name in planner/commands, and its `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"planner.commands.{cmd_name}").command
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by section, then the verbs."""
        for name, options in {**SECTIONS, "Help": (VERSION,)}.items():
            with formatter.section(name):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])
        self.format_commands(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            raise BadInput(f"unknown command {name[:60]!a}; {_guess(name)}")
        _refuse_options_before(ctx, name)
        gc.enable()  # main() stops it for planning alone: a verb may take long
        return name, command, args[1:]


def _guess(name: str) -> str:
    """What was probably meant: a verb, or the model."""
    if near := difflib.get_close_matches(name, VERBS, n=1):
        return f"did you mean {near[0]}?"
    return f"commands are {', '.join(VERBS)}; a model is given as --model {name[:60]}".encode(
        "ascii", "replace"
    ).decode()


def _refuse_options_before(ctx: click.Context, verb: str) -> None:
    """Options before a verb would be read and then forgotten."""
    for param in ctx.command.params:
        if param.name not in (None, "verbose") and ctx.get_parameter_source(param.name) == ParameterSource.COMMANDLINE:
            raise BadInput(f"{option_name(param)} belongs to plan itself; the command {verb} does not take it")


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from planner.report.paint import write
        from planner.versions import own_version

        write(f"plan {own_version()}")
        ctx.exit()


def _main(**values: Any) -> int:
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is not None:
        return 0
    if values["model"] is None and values["from_file"] is None:
        given = [name for name in values if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
        if given:
            raise BadInput("--model is missing, such as --model llama-7b (plan models lists them)")
        from planner.report.paint import write

        write(ctx.get_help())
        return 0
    return run(values)


VERSION = click.Option(
    ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Print the version."
)
command = Verbs(
    name="plan",
    help=HELP,
    callback=_main,
    params=[*WORK, VERSION],
    invoke_without_command=True,
    subcommand_metavar="[COMMAND …]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
