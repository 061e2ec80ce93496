"""The command line: one file for each subcommand, heavy imports inside them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

import segtune
from segtune.errors import SegtuneError

COMMANDS = {
    "fit": "segtune.cli.fit",
    "evaluate": "segtune.cli.evaluate",
    "predict": "segtune.cli.predict",
    "inspect": "segtune.cli.inspect",
    "find-rate": "segtune.cli.find_rate",
    "data": "segtune.cli.data",
    "compare": "segtune.cli.compare",
    "report": "segtune.cli.report",
    "attention": "segtune.cli.attention",
    "merge": "segtune.cli.merge",
    "export": "segtune.cli.export",
    "import": "segtune.cli.importing",  # a module called import could not be imported
    "list": "segtune.cli.listing",  # a module called list would hide the built-in one in this package
    "recipes": "segtune.cli.recipes",
    "demo": "segtune.cli.demo",
}


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of a job."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command from its own file."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Adds the nearest name to the message about an unknown command."""
        from segtune.registry import nearest

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            meant = nearest(args[0], list(COMMANDS))
            ctx.fail(
                f"there is no command {args[0]!r}; "
                + (f"did you mean {meant!r}?" if meant else f"commands are {', '.join(COMMANDS)}")
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(segtune.__version__, prog_name="segtune")
def cli() -> None:
    """Tune segmentation models on your own data, and learn which tuning method is worth it.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the run failed, 2 the
    command or a setting is wrong.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        arguments: as typed behind `segtune`; default: those of the process.
    """
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="segtune", standalone_mode=False
        )
    except SegtuneError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; a training run goes on with --resume", err=True)
        return 1
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        sys.stderr.close()
        return 1
    except OSError as error:
        place = f" {error.filename}" if error.filename is not None else ""
        click.echo(f"error: the system refuses{place}: {error.strerror or error}", err=True)
        click.echo("  hint: check the path, its permissions and the free space on the disk", err=True)
        return 1
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script."""
    sys.exit(run())
