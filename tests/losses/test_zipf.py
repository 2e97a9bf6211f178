"""Zipf's label smoothing against NumPy, its dense votes against the networks' own parts, and both in training."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from ffcv_train.config.schema import LossConfig, ModelConfig
from ffcv_train.losses import create_criterion
from ffcv_train.losses.cross_entropy import cross_entropy
from ffcv_train.losses.zipf import Zipf, zipf, zipf_distribution
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.models.factory import create_model
from ffcv_train.models.inspect.dense_head import find_dense_head
from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Stopped, Trainer
from tests.support.runs import Betons, log, same_weights, train

CLASSES = 7


def network(arch: str, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return create_model(ModelConfig(arch=arch), classes)


def criterion_of(classes: int = CLASSES) -> Zipf:
    criterion = create_criterion(LossConfig(name="zipf"), num_classes=classes, epochs=4)
    assert isinstance(criterion, Zipf)
    return criterion


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (ties among them), targets, and votes of which many are equal."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randint(-4, 5, (8, CLASSES), generator=random).double()
    logits[:4] += torch.randn(4, CLASSES, generator=random, dtype=torch.float64)
    votes = torch.randint(4, (8, CLASSES), generator=random)
    return logits, torch.randint(CLASSES, (8,), generator=random), votes


def distribution_by_hand(z: list[float], target: int, votes: list[int]) -> np.ndarray:
    """Ranks by counting, for each class, the others that come before it."""
    p = np.zeros(len(z))
    for k in range(len(z)):
        if k != target:
            own = (-votes[k], -z[k], k)
            p[k] = 1 / (1 + sum((-votes[m], -z[m], m) < own for m in range(len(z)) if m != target))
    return p / p.sum()


@pytest.mark.parametrize("seed", range(10))
def test_distribution_and_loss_are_the_method_s_in_numpy(seed: int) -> None:
    logits, targets, votes = batch(seed)
    p = zipf_distribution(logits, targets, votes)
    losses = zipf(logits, targets, votes, 0.3)
    for i, (z, y, v) in enumerate(zip(logits.tolist(), targets.tolist(), votes.tolist(), strict=True)):
        expected = distribution_by_hand(z, y, v)
        np.testing.assert_allclose(p[i], expected, rtol=1e-12)
        powers = np.exp(np.array(z) - max(z))
        others = [k for k in range(CLASSES) if k != y]
        q = powers / powers[others].sum()
        divergence = sum(expected[k] * np.log(expected[k] / q[k]) for k in others)
        assert losses[i].item() == pytest.approx(-np.log(powers[y] / powers.sum()) + 0.3 * divergence, rel=1e-10)


def test_gradient_pulls_the_other_classes_alone_towards_their_shares() -> None:
    logits, targets, votes = batch(3)
    leaf = logits.clone().requires_grad_()
    penalty = (zipf(leaf, targets, votes, 0.3) - cross_entropy(leaf, targets)).sum()
    (gradient,) = torch.autograd.grad(penalty, leaf)
    q = logits.masked_fill(torch.eye(CLASSES, dtype=torch.bool)[targets], -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(gradient, 0.3 * (q - zipf_distribution(logits, targets, votes)))
    assert not gradient.gather(1, targets[:, None]).any()


def test_no_loss_where_the_other_classes_obey_the_law() -> None:
    p = torch.tensor([[0.0, 1, 1 / 2, 1 / 3, 1 / 4]], dtype=torch.float64)
    logits = torch.cat([torch.tensor([[5.0]]), p[:, 1:].log()], dim=1)
    targets = torch.tensor([0])
    torch.testing.assert_close(zipf(logits, targets, torch.zeros(1, 5), 1.0), cross_entropy(logits, targets))


def images(side: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def torchvision_resnet(model: Any, x: Tensor) -> Tensor:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    return torch.einsum("bchw,kc->bhwk", x, model.fc.weight).flatten(1, 2) + model.fc.bias


def cifar_resnet(model: Any, x: Tensor) -> Tensor:
    x = model.layer3(model.layer2(model.layer1(model.bn1(model.conv1(x)).relu())))
    return torch.einsum("bchw,kc->bhwk", x, model.fc.weight).flatten(1, 2) + model.fc.bias


def timm_vit(model: Any, x: Tensor) -> Tensor:
    return model.get_classifier()(model.fc_norm(model.forward_features(x)[:, model.num_prefix_tokens :]))


def timm_resnet(model: Any, x: Tensor) -> Tensor:
    return model.get_classifier()(model.forward_features(x).flatten(2).transpose(1, 2))


def timm_convnext(model: Any, x: Tensor) -> Tensor:
    # The head's layers are the model's own, on images of one position each.
    x = model.forward_features(x)
    positions = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1], 1, 1)
    return model.forward_head(positions).view(len(x), -1, CLASSES)


def torchvision_mobilenet(model: Any, x: Tensor) -> Tensor:
    return model.classifier(model.features(x).flatten(2).transpose(1, 2))


def torchvision_swin(model: Any, x: Tensor) -> Tensor:
    return model.head(model.norm(model.features(x)).flatten(1, 2))


@pytest.mark.parametrize(
    ("arch", "side", "reference"),
    [
        ("cifar_resnet20", 24, cifar_resnet),
        ("resnet18", 64, torchvision_resnet),
        ("cifar_resnet50", 32, torchvision_resnet),
        ("timm/resnet18", 64, timm_resnet),
        ("test_vit", 160, timm_vit),
        ("test_vit2", 64, timm_vit),
        ("convnext_atto", 64, timm_convnext),
        ("mobilenet_v2", 64, torchvision_mobilenet),
        ("mobilenet_v3_small", 64, torchvision_mobilenet),
        ("swin_t", 64, torchvision_swin),
    ],
)
def test_dense_logits_are_the_classifier_at_every_position(
    arch: str, side: int, reference: Callable[[Any, Tensor], Tensor]
) -> None:
    model = network(arch).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("fc.weight", "head.weight")):  # some start at zero, where every class ties
            nn.init.normal_(parameter)
    head = find_dense_head(model, side)
    assert head is not None
    maps: list[Tensor] = []
    head.module.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        model(images(side))
        expected = reference(model, images(side))
        torch.testing.assert_close(head.logits(maps[0]), expected, rtol=1e-4, atol=1e-4)
        head.hook()
        # In training mode except for what is random or changes statistics.
        head.module.training = True
        model(images(side))
    assert head.top_classes is not None
    assert torch.equal(head.top_classes, expected.argmax(dim=-1))
    assert len(set(head.top_classes.flatten().tolist())) > 1


def test_torchvision_vit_votes_by_its_patches() -> None:
    model = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=CLASSES).eval()
    nn.init.normal_(model.heads.head.weight)
    head = find_dense_head(model, 64)
    assert head is not None and (head.name, head.skipped) == ("encoder", 1)
    tokens: list[Tensor] = []
    model.encoder.ln.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    maps: list[Tensor] = []
    head.module.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        model(images(64))
        torch.testing.assert_close(head.logits(maps[0]), model.heads(tokens[0][:, 1:]))


@pytest.mark.parametrize(("arch", "side"), [("vgg11", 64), ("resnet18", 32)], ids=["dense layers", "one position"])
def test_networks_without_a_map_are_refused_in_one_sentence(arch: str, side: int) -> None:
    with pytest.raises(UserError, match=rf"has none at {side} x {side} pixels; choose another model\.arch") as caught:
        criterion_of().attach(network(arch), side)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="there are 1"):
        criterion_of(classes=1)


def test_looking_for_the_map_leaves_no_trace() -> None:
    model = network("resnet18").train()
    model.layer1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    find_dense_head(model, 64)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_votes_are_those_of_the_last_training_batch() -> None:
    model, criterion = network("cifar_resnet20").train(), criterion_of()
    targets = torch.tensor([0, 1, 2])
    with pytest.raises(RuntimeError, match="attach"):
        criterion(torch.zeros(3, CLASSES), targets)
    criterion.attach(model, 32)
    assert not criterion.state_dict()
    logits = model(images(32))
    loss = criterion(logits, targets)
    top = criterion.head.top_classes  # type: ignore[union-attr]
    assert top.shape == (3, 64)
    votes = torch.stack([torch.bincount(row, minlength=CLASSES) for row in top])
    torch.testing.assert_close(loss, zipf(logits, targets, votes, 0.1).mean())
    model.eval()
    model(images(32, count=5))
    assert criterion.head.top_classes is top  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="this batch's votes"):
        criterion(torch.zeros(5, CLASSES), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("arch", ["cifar_resnet20", "test_vit"])
def test_voting_changes_no_gradient_of_cross_entropy_under_autocast(arch: str) -> None:
    """A cast of the classifier's weights that the votes made without gradients must not serve the logits."""
    side = 160 if arch == "test_vit" else 32
    gradients = []
    for attach in (False, True):
        model = network(arch).train()
        if attach:
            criterion_of().attach(model, side)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images(side))
        cross_entropy(logits.float(), torch.tensor([0, 1, 2])).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for without, with_votes in zip(*gradients, strict=True):
        assert torch.equal(without, with_votes)


@pytest.mark.parametrize(("arch", "side"), [("cifar_resnet20", 32), ("test_vit", 160)])
def test_votes_under_compile_are_the_same_in_one_graph(arch: str, side: int) -> None:
    torch.compiler.reset()
    model = network(arch).train()
    criterion = criterion_of()
    criterion.attach(model, side)
    head = criterion.head
    assert head is not None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    for seed in range(3):
        x = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed))
        model(x)
        expected, head.top_classes = head.top_classes, None
        loss = criterion(compiled(x), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        assert expected is not None and head.top_classes is not None
        assert torch.equal(head.top_classes, expected)


SHORT = ["--loss.name=zipf", "--resolution.min_res=32"]
VIT = ["--model.arch=test_vit", "--resolution.min_res=160", "--resolution.max_res=160", "--validation.resolution=160"]


@pytest.mark.parametrize("more", [[], VIT], ids=["cifar_resnet20", "test_vit"])
def test_training_with_votes(small_betons: Betons, tmp_path: Path, more: list[str]) -> None:
    more = [*SHORT, *more]
    run = train(small_betons, tmp_path, *more, "--logging.run=run", "--training.ema_decay=0.5", "--lr.lr=0.01")
    losses = [line["train_loss"] for line in log(run)]
    assert losses[1] < losses[0]
    assert load_checkpoint(run / "last.pt")["criterion"] == {}
    # With no weight on the divergence it is cross-entropy: votes leave the network alone.
    more.append("--training.epochs=1")
    zero = train(small_betons, tmp_path, *more, "--loss.zipf_weight=0", "--logging.run=zero")
    plain = train(small_betons, tmp_path, *more, "--loss.name=ce", "--logging.run=plain")
    assert same_weights(zero / "final.pt", plain / "final.pt")
    heavy = train(small_betons, tmp_path, *more, "--loss.zipf_weight=30", "--logging.run=heavy")
    assert log(heavy)[0]["train_loss"] > 1.5 * log(plain)[0]["train_loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small_betons, tmp_path, *SHORT, "--logging.run=whole", "--training.accumulate=2")
    step = Trainer.train_step

    def stopping(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = step(self, epoch, number, batches)
        if (epoch, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    monkeypatch.setattr(Trainer, "train_step", stopping)
    parts = [*SHORT, "--logging.run=parts", "--training.accumulate=2"]
    with pytest.raises(Stopped):
        train(small_betons, tmp_path, *parts)
    monkeypatch.undo()
    run = train(small_betons, tmp_path, *parts, "--training.resume=auto")
    assert same_weights(whole / "final.pt", run / "final.pt")


def test_training_refuses_a_network_without_a_map(small_betons: Betons, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss\.name=zipf needs a feature map"):
        train(small_betons, tmp_path, "--loss.name=zipf", "--model.arch=vgg11", "--resolution.min_res=32")
    assert list(tmp_path.iterdir()) == []
