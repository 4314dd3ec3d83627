"""`script/batch`: one command line for a batch before, during and after its run."""

import click

from client.checkout import Checkout
from client.commands import change, csv_file, look, run
from client.commands.session import Given

COMPLETE_VAR = "_OLLAMA_BATCH_COMPLETE"


def _tell_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"ollama-batch {Checkout.here().version}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--server", "address", metavar="URL", help="Default: your own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version, help="Print it, and end."
)
@click.pass_context
def cli(context: click.Context, address: str | None, as_json: bool) -> None:
    """Run files of requests as batches, and look after the batches of a server.

    BATCH is the id of a batch, or `last` for the newest one. With --server URL (or OLLAMA_BATCH_SERVER) every command
    works from another machine too. OPENAI_API_KEY is sent to the server that is named, or to your own.
    """
    context.obj = Given(address, as_json)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete these commands: eval "$(script/batch completion bash)"."""
    from click.shell_completion import get_completion_class

    name = Checkout.here().command.rpartition("/")[2]
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, name, COMPLETE_VAR).source())


for command in (
    *(run.run, csv_file.csv_file, look.list_batches, look.show, look.watch, look.results, look.errors, look.check),
    *(change.cancel, change.pause, change.resume, change.extend, change.retry, change.priority),
):
    cli.add_command(command)


def main() -> None:
    cli(prog_name=Checkout.here().command, complete_var=COMPLETE_VAR)
