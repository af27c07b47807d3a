"""The command ``proxtrain``, which the pages call."""

from tests.recipes.conftest import _new_process_for_tensorboard as _new_process_for_tensorboard
from tests.recipes.conftest import proxtrain as proxtrain
