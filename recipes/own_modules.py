"""Where a ``_target_`` of a user's own is found."""

import os
import sys
from pathlib import Path


def look_in_current_folder() -> None:
    """Make modules in the current folder importable, after all that are installed: theirs shadow nothing.

    Where this package is installed as editable, though, they come before its checkout, whose folders ``recipes``,
    ``tests`` and ``scripts`` are not what their author means by these names.
    """
    here, checkout = os.getcwd(), str(Path(__file__).resolve().parent.parent)
    if here not in sys.path:
        sys.path.insert(len(sys.path) - (sys.path[-1] == checkout), here)
