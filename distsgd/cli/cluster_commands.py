"""``distsgd cluster start|stop|status``: machines one can log in to, joined to a Ray cluster."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import JsonFlag, print_json, print_pairs, print_table, say, show
from distsgd.cli.streams import outliving_stdout

if TYPE_CHECKING:
    from distsgd.cluster.node import Node

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Join machines to a Ray cluster, with a token.")


@app.command()
def start(
    head: Annotated[bool, typer.Option("--head", help="Begin a cluster here.")] = False,
    join: Annotated[
        str | None, typer.Option(help="HOST:PORT of the head of the cluster to join.")
    ] = None,
    node_ip: Annotated[
        str | None,
        typer.Option(help="Address to listen at. (default: 127.0.0.1; the way to the head)"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Of the head. (default: 6379)")] = None,
    jobs_port: Annotated[
        int | None, typer.Option(help="Where the head takes jobs. (default: 8265)")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs to offer. (default: all)")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="The head's token, copied; for a head: one to use."),
    ] = None,
    autoscaling_config: Annotated[
        Path | None, typer.Option(help="For a head that `ray up` starts: its file.")
    ] = None,
    block: Annotated[
        bool,
        typer.Option(
            "--block", help="Stay, join again when cut off, end the node with this command."
        ),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Make this machine the head of a new cluster, or join it to one.

    A head makes a token, which every node and every training needs. Without --node-ip it listens
    on this machine alone.

    Example: distsgd cluster start --head --node-ip 10.0.0.1

    Example: distsgd cluster start --join 10.0.0.1:6379 --token-file token
    """
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cluster import local_node
    from distsgd.cluster import local_node as node_guard
    from distsgd.cluster.access import token_file as own_token_file
    from distsgd.errors import UsageError

    if head == (join is not None):
        raise UsageError("cluster start begins a cluster or joins one", "Give --head or --join")
    of_heads: dict[str, Any] = {
        "port": port, "jobs_port": jobs_port, "autoscaling": autoscaling_config
    }  # fmt: skip
    given = {name: value for name, value in of_heads.items() if value is not None}
    if join is None:
        node = local_node.start_head(node_ip or "127.0.0.1", cpus=cpus, token=token_file, **given)
    elif given:
        raise UsageError(
            "--port, --jobs-port and --autoscaling-config are of a head", "Leave them out"
        )
    else:
        node = local_node.start_member(join, node_ip, token_file, cpus)
    # With --block, the node must not be left without its guard when nobody reads.
    with outliving_stdout("the node") if block else nullcontext():
        if json:
            print_json({**asdict(node), "token_file": str(own_token_file())})
        else:
            _tell(node, own_token_file())
        if block:
            again = (
                None
                if join is None
                else partial(local_node.start_member, join, node_ip, None, cpus)
            )
            with StopSignals(f"stopping the node {node.node_ip}", leaves=False) as stop:
                node_guard.guard_node(node, stop, again)


def _tell(node: Node, token: Path) -> None:
    print_pairs([
        ("node", f"{node.node_ip}{' (head)' if node.head else ''}"),
        ("cluster", node.address),
        ("token", str(token)),
    ])  # fmt: skip
    if node.head:
        say(
            f"other machines: copy {token} there over a safe way (scp), then",
            f"  distsgd cluster start --join {node.address} --token-file FILE",
            f"then train on all of them, from here: distsgd train --address {node.address}",
        )


@app.command()
def stop(json: JsonFlag = False) -> None:
    """End what `cluster start` has started on this machine, and nothing else.

    Example: distsgd cluster stop
    """
    from distsgd.cluster.node import stop_node

    node = stop_node()
    if json:
        print_json({"stopped": None if node is None else asdict(node)})
    else:
        show("nothing was started here" if node is None else f"{node.node_ip} is stopped")


@app.command()
def status(
    address: Annotated[str, typer.Option(help="HOST:PORT of the head, or auto.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """The nodes of the cluster, and what they offer.

    Example: distsgd cluster status
    """
    from distsgd.cluster.connection import cluster_nodes

    nodes = cluster_nodes(address)
    if json:
        print_json({"nodes": [asdict(node) for node in nodes]})
        return
    print_table(
        ("node", "state", "CPUs", "free"),
        [
            (node.address + (" (head)" if node.head else ""), node.state, f"{node.cpus:g}",
             f"{node.free:g}")
            for node in nodes
        ],
    )  # fmt: skip
