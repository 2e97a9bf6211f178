"""Contrastive learning (SimCLR) on two views of each image: python examples/two_views.py quickstart_run/train.beton"""

import sys

import torch
from torch.nn import functional

from ffcv_train import Loader, Normaliser, RandomResizedCrop, create_model
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD


def nt_xent(z: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """Each of 2B embeddings shall be nearest to the other view's, B places on (Chen et al., arXiv:2002.05709)."""
    z = functional.normalize(z, dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def main(path: str, epochs: int = 3, side: int = 32) -> float:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_model("cifar_resnet20", 64).to(device)
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    with Loader(path, 32, crop=RandomResizedCrop((0.3, 1.0)), resolution=side, device=device, views=2) as loader:
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for images, *_ in loader:  # uint8 [B, 2, 3, side, side]
                loss = nt_xent(network(normalise(images.transpose(0, 1).flatten(0, 1))))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            print(f"epoch {epoch + 1}: loss {total.item() / len(loader):.4f}")
    return total.item() / len(loader)


if __name__ == "__main__":
    main(sys.argv[1])
