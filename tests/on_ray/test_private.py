"""Every private name of Ray that the package uses is there in the installed Ray.

None of these tests starts a Ray. A failure says what no longer works with this version of it.
"""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import distsgd
from distsgd.on_ray import private
from distsgd.on_ray.private import named as found
from distsgd.transport.ray_variables import TABLE, Variable, settings

RAY = Path(ray.__file__).parent
PACKAGE = Path(distsgd.__file__).parent


@pytest.mark.parametrize("name", private.NAMES)
def test_a_private_name_is_there(name: str) -> None:
    try:
        found(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"Ray {ray.__version__} has no {name} ({error}): {private.NAMES[name]}")


def test_a_name_that_is_missing_is_named_with_what_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private.missing_names() == {}
    monkeypatch.delattr("ray._private.node.Node.start_monitor")
    name = "ray._private.node:Node.start_monitor"
    assert private.missing_names() == {name: private.NAMES[name]}


def test_the_token_is_read_and_forgotten_on_demand() -> None:
    methods = dir(found("ray._raylet:AuthenticationTokenLoader"))
    assert {"reset_cache", "has_token"} <= set(methods), "a second session cannot authenticate"


def test_ray_init_takes_the_private_options() -> None:
    source = inspect.getsource(inspect.unwrap(ray.init))
    for option in private.init_options(Path("/x")):
        assert f'"{option}"' in source, f"a session cannot be kept apart: ray.init has no {option}"


def test_a_session_starts_the_head_and_a_node_whose_agents_are_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = importlib.import_module("ray._private.services")
    node, raylet = found("ray._private.node:Node"), importlib.import_module("ray._raylet")
    source = inspect.getsource(services)
    for name in (*private._AGENTS, "--session_dir=", "--node_id="):
        assert name in source, f"a session waits for its agents: the node has no {name}"
    for port in private._AGENT_PORTS:
        assert port in vars(raylet).values(), f"a session waits for {port}"
    assert "start_ray_process(" in inspect.getsource(services.start_raylet)
    given: list[list[str]] = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, name: given.append(command))
    before = {name: getattr(node, name) for name in private._EXTRA}
    number = "7" * 56
    agent = "--dashboard_agent_command=python agent.py"
    flags = [f"--session_dir={tmp_path}", f"--node_id={number}", agent]
    with private.no_extra_processes(["python", "in.py"]):
        for name in private._EXTRA:
            getattr(node, name)(None)
        assert found("ray._private.utils:get_dashboard_dependency_error")() is not None
        services.start_ray_process(["gcs", *flags], "gcs_server")
        services.start_ray_process(["raylet", *flags], "raylet")
    assert before == {name: getattr(node, name) for name in private._EXTRA}
    assert given == [
        ["gcs", *flags],
        ["raylet", *flags[:2], f"--dashboard_agent_command=python in.py {tmp_path}"],
    ]
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {f"{port}_{number}": "-1" for port in private._AGENT_PORTS}


def test_ray_init_can_be_found_and_replaced() -> None:
    assert private.init_code().co_name == "init", "two threads that call ray.init are not noticed"
    before = ray.init
    with private.replaced_init(lambda init: init.__name__):
        assert ray.init == "init"
    assert ray.init is before


def test_the_job_configuration_takes_folders_and_claims_one_of_its_own() -> None:
    config = private.installed_only(["/x"], {})
    assert config._runtime_env_has_working_dir(), "workers import from the working folder"
    assert config._py_driver_sys_path == ["/x"], "workers do not find the package"


def test_ray_actors_can_call_a_function() -> None:
    source = inspect.getsource(importlib.import_module("ray.actor"))
    assert "__ray_call__" in source, "a worker that hangs is not killed at once"


def test_the_client_of_the_head_is_dropped() -> None:
    source = inspect.getsource(importlib.import_module("ray._private.node"))
    assert "self._gcs_client" in source, "the process ends some seconds after its cluster"
    node = SimpleNamespace(_gcs_client=object())
    private.drop_gcs_client(node)
    assert node._gcs_client is None


def test_without_a_ray_nothing_has_died_and_this_process_is_the_head() -> None:
    assert private.global_node() is None
    assert private.dead_processes() == set()
    assert private.is_head()


def test_the_sigterm_handler_is_left_out_and_put_back() -> None:
    before = found("ray._private.utils:set_sigterm_handler")
    with private.without_sigterm_handler():
        assert found("ray._private.utils:set_sigterm_handler") is not before
    assert found("ray._private.utils:set_sigterm_handler") is before


def test_names_of_processes_files_and_calls() -> None:
    services = inspect.getsource(importlib.import_module("ray._private.services"))
    constants = inspect.getsource(importlib.import_module("ray._private.ray_constants"))
    for name in private.VITAL_PROCESSES:
        assert name in services + constants, f"the death of {name} is not noticed"
    assert private.HEAD_RESOURCE in (RAY / "autoscaler/v2/utils.py").read_text(encoding="utf-8")


def test_start_leaves_out_the_client_server(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = importlib.import_module("ray.scripts.scripts")
    given: list[Any] = []
    monkeypatch.setattr(scripts, "get_ray_client_dependency_error", lambda: None)
    monkeypatch.setattr(scripts, "cli", SimpleNamespace(main=given.append))
    private.start(["--head"])
    assert given == [["start", "--head"]]
    assert isinstance(scripts.get_ray_client_dependency_error(), ImportError)


@pytest.mark.parametrize("variable", TABLE, ids=lambda variable: variable.name)
def test_ray_still_reads_a_variable(variable: Variable) -> None:
    content = (RAY / variable.read_in).read_bytes()
    names = {variable.name, variable.name.removeprefix("RAY_")}
    assert any(name.encode() in content for name in names), (
        f"Ray {ray.__version__} no longer reads {variable.name}: {variable.why}"
    )


def test_every_variable_of_ray_in_the_package_is_in_the_table() -> None:
    known = {variable.name for variable in TABLE}
    for path in PACKAGE.rglob("*.py"):
        used = re.findall(r'"(RAY_[A-Za-z_]+)"', path.read_text(encoding="utf-8"))
        if path.name != "ray_variables.py" and "bench" not in path.parts:
            assert not used, f"{path} spells {used}; name them by distsgd.transport.ray_variables"
        assert set(used) <= {*known, "RAY_TMPDIR"}, path


def test_settings_of_each_kind_of_process() -> None:
    assert settings("session")["RAY_AUTH_MODE"] == settings("node")["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_MODE" not in settings("client")
    assert settings("client").items() <= settings("session").items()


def test_private_ray_is_used_in_one_module() -> None:
    pattern = re.compile(r"ray\._private\.|ray\._raylet|from ray\._|__ray_call__|ray\.scripts")
    for path in PACKAGE.rglob("*.py"):
        if "peers" not in path.parts and path.name != "private.py":
            assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_importing_the_module_imports_no_ray() -> None:
    code = "import sys, distsgd.on_ray.private; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
