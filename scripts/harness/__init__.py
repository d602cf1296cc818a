"""What the scripts share: the sub-commands of `faults.py` on one harness, and tables."""
