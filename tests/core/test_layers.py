"""Imports point down only, without circles, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE

import distsgd

PACKAGE = Path(distsgd.__file__).parent

LAYERS = (
    "core", "data", "transport", "engine", "on_ray", "cluster", "config", "runs", "figures",
    "proof", "training", "forensics", "simulation", "bench", "tuning", "serving", "advice",
    "sklearn", "lecture", "watch", "cli",
)  # fmt: skip
"""From the bottom up."""

BOTTOM = ("errors", "spelling", "version")
"""Modules that everyone may import and that import nothing of the package."""

ROOTS = {
    "distsgd": (
        "runs",
        "proof",
        "training",
        "forensics",
        "simulation",
        "tuning",
        "errors",
        "version",
    ),
    "distsgd.__main__": ("cli",),
}
"""What the package itself and `python -m distsgd` may import."""

ONLY_IN = {
    "ray": {"on_ray", "cluster", "transport"},
    "typer": {"cli"},
    "rich": {"cli"},
    "pyarrow": {"data", "runs"},
    "torch": set(),
    "sklearn": {"runs", "sklearn"},
}

PEERS = "distsgd.bench.peers"
"""What ours is compared with: scripts, run as processes of their own, that no module imports.
They may import what they show."""

OF_PEERS = ("ray", "torch", "sklearn")


def module_name(path):
    parts = ("distsgd", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module):
    """The part after "distsgd", empty for the package itself."""
    return [*module.split("."), ""][1]


def imports(source, package):
    """Full names of all that a module imports, anywhere in it, guarded or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_peer(module):
    return f"{module}.".startswith(f"{PEERS}.")


def allowed_layers(module):
    layer = layer_of(module)
    if module in ROOTS:
        return ROOTS[module]
    if layer in BOTTOM:
        return ()
    return (*BOTTOM, *LAYERS[: LAYERS.index(layer) + 1])


def complaints(module, package, source):
    """What is wrong with the imports of one module."""
    for name in imports(source, package):
        top = name.split(".")[0]
        if top == "distsgd" and layer_of(name) not in allowed_layers(module):
            yield f"{module} imports {name}, which is not below it"
        if top == "distsgd" and f"{name}.".startswith(f"{PEERS}.") and not is_peer(module):
            yield f"{module} imports {name}, which is run, not imported"
        if top in OF_PEERS and is_peer(module):
            continue
        if layer_of(module) not in ONLY_IN.get(top, {layer_of(module)}):
            yield f"{module} imports {top}, which belongs in {sorted(ONLY_IN[top])}"
        if layer_of(module) == "core" and top not in {"distsgd", "numpy", *sys.stdlib_module_names}:
            yield f"{module} imports {top}, but core has numpy only"


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def package_of(module):
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert list(complaints(module, package_of(module), source)) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_in_a_layer(module):
    assert module in ROOTS or layer_of(module) in (*LAYERS, *BOTTOM)


def own_imports(module):
    """The modules of the package that a module imports, anywhere in it."""
    source = MODULES[module].read_text(encoding="utf-8")
    found = set()
    for name in imports(source, package_of(module)):
        if name in MODULES:
            found.add(name)
        elif name.rpartition(".")[0] in MODULES:
            found.add(name.rpartition(".")[0])
    return found - {module}


def circles(graph):
    """The groups of modules that import each other, directly or through others (Tarjan, 1972)."""
    number, low, stack, groups = {}, {}, [], []

    def visit(module):
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == number[module]:
            at = stack.index(module)
            groups.append(sorted(stack[at:]))
            del stack[at:]

    for module in graph:
        if module not in number:
            visit(module)
    return [group for group in groups if len(group) > 1]


def test_no_module_imports_itself_through_others():
    graph = {module: own_imports(module) for module in MODULES}
    graph.pop("distsgd")  # its names are loaded when they are first used
    assert circles({module: own & set(graph) for module, own in graph.items()}) == []


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"d", "a"}}
    assert circles(graph) == [["a", "b", "c"]]


def test_the_scan_finds_the_package():
    assert {"distsgd", "distsgd.core.plan", "distsgd.cli.main", "distsgd.errors"} <= set(MODULES)
    assert {layer_of(module) for module in MODULES} >= {"core", "data", "transport", "on_ray"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("distsgd.core.plan", "import distsgd.data.shards"),
        ("distsgd.core.plan", "from distsgd import data"),
        ("distsgd.core.plan", "from distsgd import train"),
        ("distsgd.core.plan", "import distsgd"),
        ("distsgd.core.plan", "from ..data import shards"),
        ("distsgd.core.plan", "from .. import run"),
        ("distsgd.core.plan", "import scipy.special"),
        ("distsgd.core.plan", "def late():\n    from pyarrow import ipc"),
        ("distsgd.data.shards", "from distsgd.transport.base import Channel"),
        ("distsgd.data.shards", "import ray"),
        ("distsgd.transport.base", "from distsgd.engine import job"),
        ("distsgd.engine.job", "from distsgd.config.settings import TrainConfig"),
        ("distsgd.engine.job", "import pyarrow as pa"),
        ("distsgd.config.settings", "if TYPE_CHECKING:\n    from distsgd.training import train"),
        ("distsgd.config.settings", "from ray.util import state"),
        ("distsgd.training.training", "from distsgd.cli.output import say"),
        ("distsgd.training.training", "import distsgd.lecture.experiments.landscape"),
        ("distsgd.training.training", "from rich.console import Console"),
        ("distsgd.lecture.report", "import typer"),
        ("distsgd.cli.main", "def late():\n    import ray"),
        ("distsgd.bench.report", "from distsgd.cli.output import say"),
        ("distsgd.bench.ours", "import ray"),
        (
            "distsgd.bench.benchmark",
            "def late():\n    from sklearn.linear_model import SGDClassifier",
        ),
        ("distsgd.bench.benchmark", "from distsgd.bench.peers import numpy_loop"),
        ("distsgd.bench.benchmark", "from distsgd.bench import peers"),
        ("distsgd.training.training", "from distsgd.bench.report import Report"),
        ("distsgd.engine.job", "import torch"),
        ("distsgd.bench.peers.torch_sgd", "import typer"),
        ("distsgd.errors", "from distsgd.core import plan"),
        ("distsgd.version", "from distsgd.errors import DistsgdError"),
        ("distsgd", "from distsgd.cli import main"),
        ("distsgd", "import typer"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert list(complaints(module, module.rpartition(".")[0] or module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("distsgd.core.plan", "import math\nimport numpy as np\nfrom numpy.typing import NDArray"),
        ("distsgd.core.plan", "from distsgd.core.arrays import Floats\nfrom . import arrays"),
        (
            "distsgd.data.shards",
            "import pyarrow\nfrom ..core import plan\nfrom . import atomic",
        ),
        ("distsgd.on_ray.fleet", "import ray\nfrom distsgd.errors import DistsgdError"),
        ("distsgd.config.settings", "from distsgd.engine.job import Job"),
        ("distsgd.lecture.report", "from distsgd.training import train"),
        ("distsgd.bench.startup", "from distsgd.on_ray.session_guard import clear_session"),
        ("distsgd.bench.peers.torch_sgd", "import torch\nfrom torch.nn import Linear"),
        ("distsgd.bench.peers.ray_parameter_server", "import ray\nimport distsgd.bench.peers"),
        ("distsgd.cli.main", "import typer\nfrom distsgd.lecture import report"),
        ("distsgd", "from distsgd import training"),
        ("distsgd.__main__", "from distsgd.cli.main import main"),
    ],
)
def test_a_right_import_is_let_through(module, source):
    assert list(complaints(module, module.rpartition(".")[0] or module, source)) == []


def loaded_by(statement, names):
    """Which of some packages a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(*(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return done.stdout.split()


def test_importing_the_package_is_light():
    heavy = ["ray", "numpy", "typer", "rich", "pyarrow", "matplotlib", "PIL", "prometheus_client"]
    assert loaded_by("import distsgd", heavy) == []


def test_importing_the_command_line_loads_neither_ray_nor_pyarrow():
    assert loaded_by("import distsgd.cli.main", ["typer", "ray", "pyarrow"]) == ["typer"]


OF_THE_PROCESS = {
    "signal.signal": {"training.interrupts", "on_ray.init"},  # for the time of a call
    "os._exit": set(),
    "threadpoolctl.threadpool_limits": set(),
    "sys.setswitchinterval": set(),
    "os.umask": set(),
    "os.chdir": set(),
}
"""What changes the whole process, and which modules of the library may do it nevertheless."""

PROCESSES_OF_OURS = {
    "advice.trials", "bench.processes", "bench.limits", "data.remote.fetching_ahead",
    "on_ray.processes",
}  # fmt: skip
"""Modules that do so where they are the whole of a process."""


@pytest.mark.parametrize("module", MODULES)
def test_a_library_leaves_its_process_alone(module):
    name = module.removeprefix("distsgd.")
    if layer_of(module) == "cli" or name in PROCESSES_OF_OURS or is_peer(module):
        return
    source = MODULES[module].read_text(encoding="utf-8")
    called = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
    }
    names = called | set(imports(source, package_of(module)))
    assert [what for what, who in OF_THE_PROCESS.items() if what in names and name not in who] == []
