"""Where a ``_target_`` of a user's own is found."""

import os
import sys


def look_in_current_folder() -> None:
    """Make modules in the current folder importable, after all that are installed: theirs shadow nothing."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
