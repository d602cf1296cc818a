"""Who computes where: in one process, or on the actors of Ray."""
