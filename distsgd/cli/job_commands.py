"""``distsgd submit`` and ``distsgd jobs list|logs|stop``: trainings that a cluster carries out."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, pass_on, print_json, print_pairs, print_table, say
from distsgd.cli.settings import flags_among, spelling_of, typed

if TYPE_CHECKING:
    from distsgd.cluster.jobs import JobApi, JobState

__all__ = ["add_to", "app"]

app = typer.Typer(no_args_is_help=True, help="Trainings handed to a cluster by `submit`.")

AddressFlag = Annotated[
    str, typer.Option(help="HOST:PORT of the cluster's head, http://HOST:8265, or auto.")
]
Job = Annotated[str, typer.Argument(help="A job of `jobs list`, or latest.")]

_NOT_HERE = ("--address", "--json", "--help", "--run-dir", "--trace", "--watch")
"""Flags of train that mean something else to submit, or name files that would go with the job."""


def submit(
    context: typer.Context,
    address: AddressFlag = "auto",
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run there, instead of a new training.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow what it prints.")] = False,
    json: JsonFlag = False,
) -> None:
    """Hand a training to a cluster as a Ray job, and follow it; Ctrl-C leaves it running.

    Takes the options of `distsgd train`, or with --resume those of `distsgd resume`. The code of
    this installation is sent along; data is not: the dataset has to be there, or at a URI. The run
    lies in the head's folder of runs, under the name of the job.

    Example: distsgd submit --dataset s3://bucket/cifar10 --workers auto --epochs 20

    Example: distsgd submit --resume job-20260101-120000-ab12
    """
    from distsgd.cluster.jobs import job_api

    arguments, files, sample = _checked(context, resume)
    with job_api(address) as api:
        job = api.submit(arguments, files, sample=sample, run=resume)
        if json and detach:
            print_json({"job": job, "address": api.address})
            return
        say(f"{job} is handed to {api.address}")
        if detach:
            say(*_how_to_come_back(job))
        else:
            _follow(api, job, json)


def _checked(context: typer.Context, resume: str | None) -> tuple[list[str], list[Path], bool]:
    """The command for the job, the files it reads, and whether it needs the embedded images.

    Its flags are read here once, so that a mistake is reported before anything is sent.
    """
    from distsgd.config.sources import config_elsewhere
    from distsgd.errors import UsageError
    from distsgd.spelling import written
    from distsgd.training.chaos import chaos_from

    given = context.args
    for word in given:
        if (flag := word.partition("=")[0]) in _NOT_HERE:
            raise UsageError(f"{flag} is given twice, or means nothing in a job", "Leave it out")
    name = "train" if resume is None else "resume"
    command = context.find_root().command.commands[name]  # type: ignore[attr-defined]
    words = given if resume is None else [resume, *given]
    read = command.make_context(name, list(words)).params
    file: Path | None = read.get("config")
    with written(lambda: spelling_of(command)):
        config = config_elsewhere(*typed(flags_among(read), read.get("set_"), file))
    if config.workers == 0:
        raise UsageError("--workers 0 trains without a cluster", "Leave it out, or take train")
    if read["chaos"]:
        chaos_from(read["chaos"], config.seed, config.workers)
    if file is not None:
        words = [_by_its_name(word, file) for word in words]
    # Of what dataset a run is that is there already, only the head knows.
    sample = resume is not None or config.dataset == "sample"
    return [name, *words], [] if file is None else [file], sample


def _by_its_name(word: str, file: Path) -> str:
    """The word of a command line, with the name alone if it is the file."""
    flag, equals, value = word.partition("=")
    if flag == "--config" and equals and Path(value) == file:
        return f"{flag}={file.name}"
    return file.name if Path(word) == file else word


def _how_to_come_back(job: str) -> tuple[str, str]:
    return (
        f"the job continues; to follow it: distsgd jobs logs {job} --follow",
        f"to end it: distsgd jobs stop {job}",
    )


def _follow(api: JobApi, job: str, json: bool = False) -> None:
    """Show what a job prints until it ends; the exit code says how."""

    from distsgd.errors import DistsgdError

    def leave(number: int, frame: object) -> None:
        """At once: what follows the job would first take leave of the cluster, for seconds."""
        say("", *_how_to_come_back(job))
        sys.stdout.flush()
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    try:
        state = api.follow(job, lambda text: pass_on(text, err=json))
    except DistsgdError:
        say(*_how_to_come_back(job))
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if json:
        print_json(asdict(state))
    _tell_end(state)
    if state.state != "succeeded":
        raise typer.Exit(130 if state.state == "stopped" else 1)


def _tell_end(state: JobState) -> None:
    say(f"{state.job} {'is still ' if not state.over else 'has '}{state.state}")
    if state.over and state.state != "succeeded":
        say(f"to resume its run, if it has started: distsgd submit --resume {state.run}")


@app.command("list")
def list_(address: AddressFlag = "auto", json: JsonFlag = False) -> None:
    """The trainings that were handed to a cluster, the newest first.

    Example: distsgd jobs list
    """
    from distsgd.cluster.jobs import job_api

    with job_api(address) as api:
        found = api.jobs()
    if json:
        print_json({"jobs": [asdict(state) for state in found]})
        return
    print_table(
        ("job", "state", "started (UTC)", "ended (UTC)", "command"),
        [
            (one.job, one.state, _plain_time(one.begun), _plain_time(one.ended), one.command)
            for one in found
        ],
    )


def _plain_time(time: str) -> str:
    return time.replace("T", " ").removesuffix("+00:00")


@app.command()
def logs(
    job: Job = "latest",
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on showing it until the job ends.")
    ] = False,
    address: AddressFlag = "auto",
) -> None:
    """What a job has printed.

    Example: distsgd jobs logs latest --follow
    """
    from distsgd.cluster.jobs import job_api

    with job_api(address) as api:
        name = _named(api, job)
        if follow:
            _follow(api, name)
        else:
            pass_on(api.logs(name))


@app.command()
def stop(job: Job = "latest", address: AddressFlag = "auto", json: JsonFlag = False) -> None:
    """End a job; its run can be resumed.

    Example: distsgd jobs stop latest
    """
    from distsgd.cluster.jobs import job_api

    with job_api(address) as api:
        state = api.stop(_named(api, job))
    if json:
        print_json(asdict(state))
    else:
        print_pairs([("job", state.job), ("state", state.state)])
        _tell_end(state)
    if not state.over:
        raise typer.Exit(1)


def _named(api: JobApi, job: str) -> str:
    from distsgd.errors import RuntimeFailure

    if job != "latest":
        return job
    found = api.jobs()
    if not found:
        raise RuntimeFailure(f"there are no jobs at {api.address}", "`distsgd submit` makes one")
    return found[0].job


def add_to(whole: typer.Typer) -> None:
    """Add the commands."""
    whole.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        submit
    )
    whole.add_typer(app, name="jobs")
