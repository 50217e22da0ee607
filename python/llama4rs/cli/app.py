"""All commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import chat, demo, generate, kv, models, plan, synth

__all__ = ["app"]

_EPILOG = "Every command has examples: llama4rs COMMAND --help"

app = typer.Typer(
    help="Run Meta's Llama 4 models on this machine.",
    epilog=_EPILOG,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llama4rs {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("pack")(models.pack)
app.command("info")(models.info)
app.command("verify")(models.verify)
app.command("warm")(models.warm)
app.command("plan")(plan.plan)
app.command("demo")(demo.demo)
app.command("synth")(synth.synth)
app.add_typer(kv.app, name="kv")
