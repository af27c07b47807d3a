"""Data for training: tensor-resident batching, image augmentation, toy functions, sparse simulations, Fashion-MNIST."""

from framework.data.augment import ImageTransform as ImageTransform
from framework.data.fashion_mnist import fashion_mnist as fashion_mnist
from framework.data.functions import FUNCTIONS as FUNCTIONS
from framework.data.functions import ToyFunction as ToyFunction
from framework.data.loader import TensorLoader as TensorLoader
from framework.data.recovery import LinearRecovery as LinearRecovery
from framework.data.recovery import NetworkRecovery as NetworkRecovery
from framework.data.recovery import linear_recovery as linear_recovery
from framework.data.recovery import network_recovery as network_recovery
from framework.data.sparse import sparse_linear as sparse_linear
from framework.data.sparse import sparse_mlp as sparse_mlp
from framework.data.toy import cubic as cubic
from framework.data.toy import cubic_function as cubic_function
from framework.data.toy import sine as sine
from framework.data.toy import xor as xor
