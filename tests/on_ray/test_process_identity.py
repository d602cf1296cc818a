import subprocess
from dataclasses import replace

from distsgd.on_ray.fleet import ProcessIdentity, _started, end_process, process_identity


def test_only_the_very_process_is_ended() -> None:
    """Not one of another machine, nor one that has taken the number of a dead one."""
    here = process_identity()
    with subprocess.Popen(["sleep", "1000"]) as process:
        place = ProcessIdentity(here.machine, process.pid, _started(process.pid))
        assert not end_process(replace(place, machine="elsewhere"))
        assert not end_process(replace(place, started="1"))
        assert process.poll() is None
        assert end_process(place)
        assert process.wait() == -9
        assert not end_process(place)
