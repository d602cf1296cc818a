"""CIFAR-10: fetched, converted and repaired."""
