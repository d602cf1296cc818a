"""Training on Ray: driver, worker fleet, server and worker actors, sessions."""
