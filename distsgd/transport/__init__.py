"""How W and gradients travel between a worker and the parameter server."""
