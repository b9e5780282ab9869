"""Interactive diagrams: delete neurons by hand, in a notebook or on the page that `repro site` writes.

    Deletion(recipe)                    a small network drawn unit by unit (W1, after the paper's companion article)
    Importance(recipes)                 importance against selectivity, supposed and measured (W2)
    Memorization(true, shuffled)        a network that generalizes beside one that memorizes

Each is a Python class and an ES module of the same name beside it. Networks and tables come from the store; once shown,
a diagram computes by itself and asks no kernel.
"""

from repro.widgets.deletion import Deletion
from repro.widgets.importance import Importance
from repro.widgets.memorization import Memorization

__all__ = ["Deletion", "Importance", "Memorization"]
