"""What ours is compared with. Each is a process of its own, run as ``python -m``; see `child`.

Here alone may torch and scikit-learn be imported. Each follows its own documentation's pattern,
takes the same images, and works on the same features: pixels less their mean, divided by 64.
"""
