"""Data for training: tensor-resident batching, image augmentation, toy functions, Fashion-MNIST."""

from framework.data.augment import ImageTransform as ImageTransform
from framework.data.loader import TensorLoader as TensorLoader
