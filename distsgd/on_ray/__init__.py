"""Training on Ray: driver, worker fleet, server and worker actors, sessions.

A process of Ray imports this before it loads numpy, and chooses its BLAS kernel here: see
`distsgd.engine.core_type`.
"""

from distsgd.engine.core_type import choose_core_type
from distsgd.on_ray.private import works_for_command_line

if works_for_command_line():
    choose_core_type()
