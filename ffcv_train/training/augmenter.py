"""A training batch from the loader to what the network sees: policy, normalisation, erasing, mixing."""

from dataclasses import dataclass

from torch import Tensor

from ffcv_train.augment import erasing, mixing, policy
from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.models.normalise import Normaliser


@dataclass(frozen=True)
class Augmenter:
    """Augments batches on their device, each sample as a function of (seed, epoch, key), and then mixes the batch."""

    augment: AugmentConfig
    normalise: Normaliser
    num_classes: int
    seed: int
    on_device: bool = True
    """Whether the policy is still to be applied: loaders of worker processes have done so"""

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Images [B, 3, R, R] for the network, and targets: int64 [B], or float32 [B, K] where samples are mixed."""
        config, keys, images = self.augment, batch.keys, batch.images
        if self.on_device:
            images = policy.apply(images, policy.plan(config, self.seed, epoch, keys))
        x, side = self.normalise(images), images.shape[-1]
        if config.erase:
            x = erasing.erase(x, erasing.boxes(config.erase, side, self.seed, epoch, keys), self.seed, epoch, keys)
        mixture = mixing.draw(config, side, self.seed, epoch, keys)
        if mixture is None:
            return x, batch.labels
        return mixing.mix(x, mixture), mixing.mixed_targets(batch.labels, mixture, self.num_classes)
