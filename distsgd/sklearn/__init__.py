"""Estimators with the interface of scikit-learn; `pip install 'distsgd[sklearn]'`.

>>> from sklearn.datasets import load_iris
>>> from distsgd.sklearn import MinibatchSGDClassifier
>>> X, y = load_iris(return_X_y=True)
>>> MinibatchSGDClassifier().fit(X, y).score(X, y) > 0.95
True
"""

from distsgd.errors import import_optional

import_optional("sklearn", "sklearn")

from distsgd.sklearn.classifier import MinibatchSGDClassifier  # noqa: E402

__all__ = ["MinibatchSGDClassifier"]
