"""The loader in Lightning's Trainer: python examples/lightning_trainer.py quickstart_run/train.beton"""

import sys
from typing import Any

import pytorch_lightning as lightning
import torch

from ffcv_train import Batch, Loader, MaxSup, Normaliser, RandomResizedCrop, create_model, open_data_set
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD


class Classifier(lightning.LightningModule):
    def __init__(self, num_classes: int, epochs: int) -> None:
        super().__init__()
        self.model = create_model("cifar_resnet20", num_classes)
        self.criterion = MaxSup(epochs=epochs)

    def on_train_epoch_start(self) -> None:
        self.criterion.start_epoch(self.current_epoch)

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        images = Normaliser(IMAGENET_MEAN, IMAGENET_STD, self.device)(batch.images)
        return self.criterion(self.model(images), batch.labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(path: str, epochs: int = 3, **options: Any) -> lightning.Trainer:
    data_set = open_data_set(path)
    trainer = lightning.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, **options)
    with Loader(data_set, 32, crop=RandomResizedCrop(), resolution=32, device=trainer.strategy.root_device) as loader:
        trainer.fit(Classifier(len(data_set.class_names or ()), epochs), loader)
    return trainer


if __name__ == "__main__":
    main(sys.argv[1])
