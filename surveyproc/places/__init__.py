"""Where work runs: in this process, or in the processes of a Ray cluster.

Both give the same results, byte for byte: a result depends on its item alone. `opened` gives a
command its places, which choose between the two by the work that there is.
"""

from surveyproc.places.base import Divided, Item, Ledger, Placement, Stage, under_way
from surveyproc.places.choice import Places, opened

__all__ = [
    "Divided",
    "Item",
    "Ledger",
    "Placement",
    "Places",
    "Stage",
    "opened",
    "under_way",
]
