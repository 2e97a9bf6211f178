"""Networks: torchvision's, timm's and our CIFAR ResNets, with BlurPool and checkpoints to start from."""
