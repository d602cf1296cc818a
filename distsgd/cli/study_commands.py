"""``distsgd study``: the smaller experiments of the lecture, one command each."""

from __future__ import annotations

import typer

from distsgd.cli import study_loss_commands, study_minibatch_commands

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The lecture's experiments, one by one.")
study_loss_commands.add_to(app)
study_minibatch_commands.add_to(app)
