"""Many networks of one shape, trained together on one design: replicates, starts, seeds or weights of the penalty."""

from framework.stacks.levenberg_marquardt import Finished as Finished
from framework.stacks.levenberg_marquardt import levenberg_marquardt as levenberg_marquardt
from framework.stacks.networks import SparseNetworks as SparseNetworks
from framework.stacks.networks import gaps as gaps
from framework.stacks.networks import objectives as objectives
from framework.stacks.prox_adam import AdamStage as AdamStage
from framework.stacks.prox_adam import network_path as network_path
from framework.stacks.prox_adam import prox_adam as prox_adam
