"""``distsgd completion``: a script that completes commands, options and values in a shell.

The script has all that is fixed in it, and looks for runs and datasets by itself: no Python is
started at a press of the tab key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from distsgd.cli.docs_commands import TOPICS
from distsgd.cli.output import show
from distsgd.errors import UsageError

__all__ = ["SHELLS", "add_to", "script"]

_RUNS, _DATASETS = "@runs", "@datasets"
"""In place of values: what the script looks for when it completes."""

_KINDS = {
    "run": _RUNS, "runs": _RUNS, "dataset": _DATASETS, "topic": " ".join(TOPICS),
    "log_format": "text json", "shell": "bash zsh fish",
}  # fmt: skip
"""Values of options and arguments that are no settings, by name."""


@dataclass(frozen=True)
class _Option:
    """An option of a command: its names, whether a value follows, which values, and its help."""

    names: tuple[str, ...]
    takes: bool
    values: str
    help: str


@dataclass(frozen=True)
class _Command:
    """A command: the words that lead to it, what may follow them, and its help."""

    path: str
    inner: tuple[str, ...]
    options: tuple[_Option, ...]
    argument: str
    help: str


def completion(
    context: typer.Context, shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]
) -> None:
    """Print a script that completes commands, options, values, runs and datasets in a shell.

    Example: distsgd completion bash
    """
    show(*script(context.find_root().command, shell).splitlines())


def script(root: Any, shell: str) -> str:
    """The script for a shell.

    Args:
        root: the whole program, as typer has parsed it.
        shell: one of `SHELLS`.

    Raises:
        UsageError: it is for another shell.
    """
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for {shell}", "Give bash, zsh or fish")
    return SHELLS[shell](list(_commands(root, "distsgd")))


def _commands(command: Any, path: str) -> Iterator[_Command]:
    """A command and all below it."""
    inner = getattr(command, "commands", {})
    options, argument = [], ""
    for one in command.params:
        values = _values(one.name)
        if one.param_type_name == "option":
            names = (*one.opts, *one.secondary_opts)
            options.append(_Option(names, not one.is_flag, values, _first(one.help or "")))
        elif not argument:
            argument = values
    if path != "distsgd":  # they may stand anywhere on the line
        options.append(_Option(("--log-format",), True, _KINDS["log_format"], "Format of the log"))
        options.append(_Option(("--debug",), False, "", "Show tracebacks of errors"))
    options.append(_Option(("--help",), False, "", "Show the help"))
    yield _Command(path, tuple(inner), tuple(options), argument, _first(command.help or ""))
    for name, one in inner.items():
        yield from _commands(one, f"{path} {name}")


def _values(name: str) -> str:
    """The values of an option or an argument, with spaces between; empty if any will do."""
    from distsgd.config.settings import SETTINGS

    if name in _KINDS:
        return _KINDS[name]
    if name == "set_":
        return " ".join(f"{one}=" for one in SETTINGS)
    if name not in SETTINGS:
        return ""
    known = SETTINGS[name]
    words = known.choices or (("true", "false") if known.kind == "bool" else ())
    return " ".join(filter(None, (*words, known.special)))


def _first(text: str) -> str:
    """The first sentence of a help, without markup."""
    return " ".join(text.replace("\\[", "[").split()).partition(". ")[0].rstrip(".")


_LOOK = """\
_distsgd_runs() {
    echo latest
    command ls "${DISTSGD_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/distsgd}/runs" 2>/dev/null
}
_distsgd_datasets() {
    echo cifar10 sample
    command ls "${DISTSGD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/distsgd}/datasets" 2>/dev/null
}
"""

_COMPLETE = """\
_distsgd() {
    local cur prev path word inner values prefix i
    COMPREPLY=()
    cur="${COMP_WORDS[COMP_CWORD]}"
    prev="${COMP_WORDS[COMP_CWORD-1]}"
    prefix=""
    case "$cur" in
        =) cur="" ;;
        --*=*) prev="${cur%%=*}"; prefix="$prev="; cur="${cur#*=}" ;;
        *) if [ "$prev" = "=" ]; then prev="${COMP_WORDS[COMP_CWORD-2]}"; fi ;;
    esac
    path=distsgd
    i=1
    while [ "$i" -lt "$COMP_CWORD" ]; do
        word="${COMP_WORDS[i]}"
        inner=" $(_distsgd_inner "$path") "
        case "$inner" in *" $word "*) path="$path $word" ;; esac
        i=$((i+1))
    done
    if _distsgd_takes "$path" "$prev"; then
        values="$(_distsgd_values "$path" "$prev")"
        case "$values" in *=) compopt -o nospace 2>/dev/null ;; esac
    elif [ -n "$prefix" ]; then
        return 0
    else
        case "$cur" in
            -*) values="$(_distsgd_options "$path")" ;;
            *) values="$(_distsgd_inner "$path") $(_distsgd_values "$path" argument)" ;;
        esac
    fi
    COMPREPLY=( $(compgen -P "$prefix" -W "$values" -- "$cur") )
}
"""


def _bash(commands: list[_Command]) -> str:
    """Bash 4 or later."""
    functions = [
        _cases("_distsgd_inner", '"$1"', {one.path: " ".join(one.inner) for one in commands}),
        _cases(
            "_distsgd_options", '"$1"',
            {one.path: " ".join(n for o in one.options for n in o.names) for one in commands},
        ),
    ]  # fmt: skip
    values, takes = {}, []
    for one in commands:
        if one.argument:
            values[f"{one.path} argument"] = one.argument
        for option in one.options:
            keys = [f"{one.path} {name}" for name in option.names]
            takes += keys * option.takes
            values.update({key: option.values for key in keys if option.takes and option.values})
    functions.append(_cases("_distsgd_values", '"$1 $2"', values))
    patterns = "|\\\n        ".join(f'"{key}"' for key in takes)
    functions.append(
        f'_distsgd_takes() {{\n    case "$1 $2" in\n        {patterns}) return 0 ;;\n'
        "        *) return 1 ;;\n    esac\n}\n"
    )
    return _LOOK + "".join(functions) + _COMPLETE + "complete -o default -F _distsgd distsgd\n"


def _cases(name: str, of: str, answers: dict[str, str]) -> str:
    """A function of a shell that prints an answer; those that are equal share a line."""
    by_answer: dict[str, list[str]] = {}
    for key, answer in answers.items():
        if answer:
            by_answer.setdefault(answer, []).append(f'"{key}"')
    lines = [f"{name}() {{", f"    case {of} in"]
    for answer, keys in by_answer.items():
        prints = answer.replace("@", "_distsgd_") if answer[0] == "@" else f'echo "{answer}"'
        lines += [f"        {'|'.join(keys)})", f"            {prints} ;;"]
    return "\n".join([*lines, "    esac", "}", ""])


def _zsh(commands: list[_Command]) -> str:
    """Zsh, which has a layer for scripts of bash."""
    begin = "autoload -Uz compinit && compinit -C\nautoload -Uz bashcompinit && bashcompinit\n"
    return begin + _bash(commands)


_FISH = """\
function __distsgd_path
    set -l path distsgd
    for word in (commandline -opc)[2..]
        if contains -- "$path $word" $__distsgd_paths
            set path "$path $word"
        end
    end
    echo $path
end
function __distsgd_at
    test (__distsgd_path) = "$argv"
end
function __distsgd_runs
    set -l home $DISTSGD_HOME $XDG_DATA_HOME/distsgd $HOME/.local/share/distsgd
    test -n "$XDG_DATA_HOME"; or set home $DISTSGD_HOME $HOME/.local/share/distsgd
    echo latest
    command ls $home[1]/runs 2>/dev/null
end
function __distsgd_datasets
    set -l cache $DISTSGD_CACHE $XDG_CACHE_HOME/distsgd $HOME/.cache/distsgd
    test -n "$XDG_CACHE_HOME"; or set cache $DISTSGD_CACHE $HOME/.cache/distsgd
    printf '%s\\n' cifar10 sample
    command ls $cache[1]/datasets 2>/dev/null
end
"""


def _fish(commands: list[_Command]) -> str:
    """Fish, which shows the help beside each word."""
    paths = " ".join(_quoted(one.path) for one in commands)
    lines = [f"set -g __distsgd_paths {paths}", "complete -c distsgd -e"]
    known = {one.path: one for one in commands}
    for one in commands:
        at = f"complete -c distsgd -n {_quoted(f'__distsgd_at {one.path}')}"
        for name in one.inner:
            help = known[f"{one.path} {name}"].help
            lines.append(f"{at} -f -a {name} -d {_quoted(help)}")
        if one.argument:
            lines.append(f"{at} -f -a {_fish_values(one.argument)}")
        for option in one.options:
            words = " ".join(f"-l {n[2:]}" if n[:2] == "--" else f"-s {n[1:]}"
                             for n in option.names)  # fmt: skip
            values = f" -x -a {_fish_values(option.values)}" if option.values else " -r -F"
            lines.append(f"{at} {words}{values if option.takes else ''} -d {_quoted(option.help)}")
    return _FISH + "\n".join(lines) + "\n"


def _fish_values(values: str) -> str:
    return _quoted(f"(__distsgd_{values[1:]})" if values[0] == "@" else values)


def _quoted(text: str) -> str:
    """A word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[list[_Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(completion)
