"""Score functions, losses and their gradients."""
