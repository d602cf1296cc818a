"""The parameter server as a state machine, and its consistency policies."""
