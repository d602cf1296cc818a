"""Imports point down only, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE

import distsgd

PACKAGE = Path(distsgd.__file__).parent

LAYERS = ("core", "data", "channel", "runtime", "run", "api", "study", "bench", "cli")
"""From the bottom up."""

BOTTOM = ("errors", "version")
"""Modules that everyone may import and that import nothing of the package."""

ROOTS = {"distsgd": ("api", "version"), "distsgd.__main__": ("cli",)}
"""What the package itself and `python -m distsgd` may import."""

ONLY_IN = {
    "ray": {"runtime", "channel"},
    "typer": {"cli"},
    "rich": {"cli"},
    "pyarrow": {"data", "run", "channel"},
    "torch": set(),
    "sklearn": set(),
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


def test_the_scan_finds_the_package():
    assert {"distsgd", "distsgd.core.plan", "distsgd.cli.main", "distsgd.errors"} <= set(MODULES)
    assert {layer_of(module) for module in MODULES} >= {"core", "data", "channel", "runtime"}


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
        ("distsgd.data.shards", "from distsgd.channel.base import Channel"),
        ("distsgd.data.shards", "import ray"),
        ("distsgd.channel.base", "from distsgd.runtime import job"),
        ("distsgd.runtime.job", "from distsgd.run.config import TrainConfig"),
        ("distsgd.runtime.job", "import pyarrow as pa"),
        ("distsgd.run.config", "if TYPE_CHECKING:\n    from distsgd.api import train"),
        ("distsgd.run.config", "from ray.util import state"),
        ("distsgd.api.training", "from distsgd.cli.output import say"),
        ("distsgd.api.training", "import distsgd.study.landscape"),
        ("distsgd.api.training", "from rich.console import Console"),
        ("distsgd.study.report", "import typer"),
        ("distsgd.cli.main", "def late():\n    import ray"),
        ("distsgd.bench.report", "from distsgd.cli.output import say"),
        ("distsgd.bench.ours", "import ray"),
        ("distsgd.bench.rounds", "def late():\n    from sklearn.linear_model import SGDClassifier"),
        ("distsgd.bench.rounds", "from distsgd.bench.peers import images"),
        ("distsgd.bench.rounds", "from distsgd.bench import peers"),
        ("distsgd.api.training", "from distsgd.bench.report import Report"),
        ("distsgd.runtime.job", "import torch"),
        ("distsgd.bench.peers.torch_ddp", "import typer"),
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
        ("distsgd.runtime.job", "import ray\nfrom distsgd.errors import DistsgdError"),
        ("distsgd.run.config", "from distsgd.runtime.job import Job"),
        ("distsgd.study.report", "from distsgd.api import train"),
        ("distsgd.bench.startup", "from distsgd.runtime.session_guard import clear_session"),
        ("distsgd.bench.peers.torch_ddp", "import torch\nfrom torch.nn import Linear"),
        ("distsgd.bench.peers.ray_parameter_server", "import ray\nimport distsgd.bench.peers"),
        ("distsgd.cli.main", "import typer\nfrom distsgd.study import report"),
        ("distsgd", "from distsgd import api"),
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
    heavy = ["ray", "numpy", "typer", "rich", "pyarrow"]
    assert loaded_by("import distsgd", heavy) == []


def test_importing_the_command_line_loads_neither_ray_nor_pyarrow():
    assert loaded_by("import distsgd.cli.main", ["typer", "ray", "pyarrow"]) == ["typer"]


OF_THE_PROCESS = {
    "signal.signal": {"api.interrupts", "runtime.ray_init"},  # for the time of a call
    "os._exit": set(),
    "threadpoolctl.threadpool_limits": set(),
    "sys.setswitchinterval": set(),
    "os.umask": set(),
    "os.chdir": set(),
}
"""What changes the whole process, and which modules of the library may do it nevertheless."""

PROCESSES_OF_OURS = {
    "bench.child", "bench.limits", "data.remote.fetching_ahead", "runtime.ray_processes",
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
