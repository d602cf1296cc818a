"""The peers that distsgd is compared with, each run as ``python -m`` in a process of its own.

Only these modules import torch and scikit-learn. Each follows the pattern of its own documentation,
with the same images and features: pixels minus their mean, divided by 64.
"""
