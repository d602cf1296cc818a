"""What happened in a run, and why: updates shown, runs compared, causes found."""
