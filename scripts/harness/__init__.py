"""The sub-commands of `scripts/faults.py`, on one harness: cases, processes, judgements."""
