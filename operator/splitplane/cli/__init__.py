"""The ``splitplane`` command: a small root that every part adds its sub-commands to."""

import signal

import typer

from splitplane.afresh import may_begin_again
from splitplane.cli import local, model
from splitplane.cli.calibrated import accuracy, leak
from splitplane.cli.conditions import under_conditions
from splitplane.cli.explain import explain
from splitplane.cli.frontier import frontier
from splitplane.cli.plan import plan
from splitplane.cli.simulate import simulate
from splitplane.freed_memory import SEARCH_BYTES, keep_freed

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Split PyTorch models between edge and cloud."
)
model.app.command()(accuracy)
model.app.command()(leak)
app.add_typer(local.app, name="local")
app.add_typer(model.app, name="model")
for command in (plan, frontier, simulate):
    app.command()(under_conditions(command))
app.command()(under_conditions(explain, files=False))


@app.callback()
def _root() -> None:
    """Split PyTorch models between edge and cloud."""
    keep_freed(SEARCH_BYTES)


def main() -> None:
    """What the installed command runs."""
    may_begin_again()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does it removes what a command made
    app()
