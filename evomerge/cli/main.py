"""The `evomerge` command: groups the commands and turns errors into one sentence and an exit code.

Exit codes: 0 fine, 1 the work failed, 2 the input is wrong, 3 the run is held by another coordinator,
130 interrupted. Command modules are imported when their command is used, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import sys

import click

from evomerge import __version__
from evomerge.cli.output import INTERRUPTED
from evomerge.errors import EvomergeError

_COMMANDS = {
    "demo": ("evomerge.cli.search", "The main job on the embedded models, from nothing to an exported model."),
    "check": ("evomerge.cli.check", "Say everything that can be known of a search or a merge before it starts."),
    "run": ("evomerge.cli.search", "Start a search."),
    "resume": ("evomerge.cli.search", "Continue a search from its journal alone."),
    "fetch": ("evomerge.cli.search", "Fetch a run from its mirror, without continuing it."),
    "submit": ("evomerge.cli.submit", "Run a search as a Ray Job on a cluster; again, find or continue it."),
    "pause": ("evomerge.cli.steer", "Let a run finish what is being scored, and leave; resume continues it."),
    "stop": ("evomerge.cli.steer", "End a run for good."),
    "budget": ("evomerge.cli.steer", "Change the budget of a running search."),
    "workers": ("evomerge.cli.steer", "Change the number of workers of a running search."),
    "inject": ("evomerge.cli.steer", "Let a running search score a recipe of yours."),
    "hold": ("evomerge.cli.steer", "Pin the weight of a source in a running search."),
    "ban": ("evomerge.cli.steer", "Leave a source out of a running search."),
    "free": ("evomerge.cli.steer", "Let the weight of a source vary again."),
    "status": ("evomerge.cli.read", "Where a run stands."),
    "watch": ("evomerge.cli.read", "A live view of a run; viewing never resumes it."),
    "pareto": ("evomerge.cli.read", "The Pareto front of a run."),
    "show": ("evomerge.cli.read", "One candidate: recipe, scores, parents."),
    "verify": ("evomerge.cli.read", "Replay a run and compare every candidate."),
    "export": ("evomerge.cli.build", "Write the best merge as a checkpoint or a recipe."),
    "merge": ("evomerge.cli.build", "Build a model from a recipe or a mergekit file."),
    "stats": ("evomerge.cli.stats", "Measure a model on calibration texts, for methods that need it."),
    "import": ("evomerge.cli.build", "Turn a file of mergekit or mergekit-evolve into a recipe or a search file."),
    "report": ("evomerge.cli.build", "Write a run as one self-contained HTML page."),
    "operators": ("evomerge.cli.read", "The merge methods and their parameters."),
    "catalog": ("evomerge.cli.read", "The ready search spaces, suites and cluster files."),
}


class _LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command = getattr(module, "import_" if cmd_name == "import" else cmd_name)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            from evomerge.documents import did_you_mean

            raise click.UsageError(f"no command {args[0]!r}{did_you_mean(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evomerge")
def cli() -> None:
    """Search for the best way to merge language models.

    Launch a search, resume it from its journal, export the best recipe.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are printed to standard error as one sentence."""
    code: int | None = 0
    try:
        code = cli.main(args=arguments, prog_name="evomerge", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"error: {_sentence(error)}", err=True)
        code = error.exit_code
    except EvomergeError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (for instance `| head`): nothing is wrong with the work.
        sys.stderr.close()
    return code or 0


def _sentence(error: click.ClickException) -> str:
    """Return what is wrong with the words of a command line, and where its help is."""
    text = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = "" if context is None else f"; see `{context.command_path} --help`"
    return f"{text[:1].lower()}{text[1:]}{where}"
