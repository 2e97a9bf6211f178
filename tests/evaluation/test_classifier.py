"""A network in use: predictions equal evaluation's, whatever the images come as; metrics equal the command's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ffcv_train import Classifier, Loader, UserError, create_model, evaluate, load_network, open_data_set
from ffcv_train.cli.arguments import parse_request
from ffcv_train.data.open import center_crop_of
from ffcv_train.evaluation.run import run_evaluation
from ffcv_train.training.train import train
from tests.support.photographs import crops_of_photographs
from tests.support.runs import ALONE, Betons, config


@pytest.fixture(scope="module")
def network(small_run: Path) -> Classifier:
    return load_network(small_run / "final.pt", device="cpu", amp="off")


def test_metrics_are_those_of_the_command(small_run: Path, small_betons: Betons) -> None:
    final, val = small_run / "final.pt", small_betons[1]
    arguments = [f"--checkpoint={final}", f"--data.val_dataset={val}", "--training.device=cpu"]
    (wanted,) = run_evaluation(parse_request(arguments), ALONE)["results"]
    found = evaluate(load_network(final, device="cpu"), val, flip=True, num_workers=1)
    assert found.pop("notes") == []
    assert found == {key: wanted[key] for key in found}
    assert "flip_averaged" in found


def test_predictions_are_those_of_evaluation(network: Classifier, small_betons: Betons) -> None:
    """The pixels of the data set, given as arrays, Pillow images and lossless files, one by one and in batches."""
    data_set = open_data_set(small_betons[1])
    # Whole pixels at 32 of 32: Pillow and the loader cut the same square.
    pixels = [np.asarray(image) for image in crops_of_photographs(8, 32, 32, 2)]
    for image, label in zip(pixels, data_set.labels[:8].tolist(), strict=True):
        image[:, :, label % 3] = image[:, :, label % 3] // 2 + (64 if label == 3 else 127)
    whole = load_network(network.subject.path, device="cpu", amp="off", crop_ratio=1.0)
    with Loader(data_set, 8, crop=center_crop_of(whole.config), resolution=32, device="cpu", num_workers=1) as loader:
        batch = next(iter(loader))
    with torch.no_grad():
        wanted = network.model(network.network.normalise(batch.images))
    as_arrays = whole.predict(pixels)
    assert as_arrays.dtype == torch.float32
    assert as_arrays.device.type == "cpu"
    torch.testing.assert_close(as_arrays, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.predict(np.stack(pixels), batch_size=3), as_arrays, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.predict(Image.fromarray(pixels[3])), as_arrays[3:4], rtol=1e-4, atol=1e-4)


def test_files_and_pillow_images_are_the_same(network: Classifier, tmp_path: Path) -> None:
    """Grey, turned by Exif, JPEG: what is meant by the file."""
    (photograph,) = crops_of_photographs(1, 90, 120)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(photograph).convert("L").save(tmp_path / "grey.png")
    files = [tmp_path / "turned.jpg", str(tmp_path / "grey.png")]
    logits = network.predict(files)
    assert torch.equal(network.predict([Image.open(file) for file in files]), logits)
    upright = np.asarray(Image.open(files[0]).transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(network.predict([upright, files[1]]), logits)
    assert network.predict([]).shape == (0, 4)


def test_what_is_no_image_is_named(network: Classifier, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"text\.jpg cannot be read: it is not an image"):
        network.predict(tmp_path / "text.jpg")
    with pytest.raises(UserError, match=r"none\.jpg: No such file"):
        network.predict(["none.jpg"])
    with pytest.raises(TypeError, match=r"images\[0\] must be a path, .* not float32 \[8, 8, 3\]"):
        network.predict(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(TypeError, match=r"images\[0\] .* not torch.float32 \[3, 8, 8\]"):
        network.predict(torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]


def test_wrong_arguments_are_named(small_run: Path, network: Classifier, tmp_path: Path) -> None:
    final = small_run / "final.pt"
    for arguments, error, message in [
        ({"weights": "best"}, ValueError, "weights must be auto, ema or model"),
        ({"weights": "ema"}, UserError, "holds no averaged weights"),
        ({"amp": "fp8"}, ValueError, "amp must be one of bf16, fp16, off"),
        ({"device": "gpu"}, ValueError, "device must be"),
        ({"arch": "resnet18"}, UserError, "is a checkpoint of cifar_resnet20"),
        ({"resolution": 4}, UserError, "validation.resolution in the arguments must be at least 8"),
        ({"model": 3}, TypeError, "model must be"),
        ({"mean": (0.5, 0.5, 0.5)}, ValueError, "mean and std belong together"),
    ]:
        with pytest.raises(error, match=message):
            load_network(final, **{"device": "cpu", **arguments})  # type: ignore[arg-type]
    torch.save(network.model.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match="name it with arch, or pass one like it as model"):
        load_network(tmp_path / "plain.pt")
    with pytest.raises(TypeError, match="network must be"):
        evaluate(network.model, "val.beton")  # type: ignore[arg-type]


def test_foreign_weights(network: Classifier, tmp_path: Path, small_betons: Betons) -> None:
    """A plain state dict, by the name of its architecture or into a model like it."""
    torch.save(network.model.state_dict(), tmp_path / "plain.pt")
    told = {"device": "cpu", "amp": "off", "resolution": 32}
    image = crops_of_photographs(1, 40, 40)
    named = load_network(tmp_path / "plain.pt", arch="cifar_resnet20", **told)  # type: ignore[arg-type]
    given = load_network(tmp_path / "plain.pt", create_model("cifar_resnet20", 4), **told)  # type: ignore[arg-type]
    assert named.network.num_classes == given.network.num_classes == 4
    assert torch.equal(named.predict(image), given.predict(image))
    assert evaluate(named, small_betons[1], num_workers=1)["count"] == 50
    with pytest.raises(UserError, match="has 4 classes; pass a model with as many outputs"):
        load_network(tmp_path / "plain.pt", create_model("cifar_resnet20", 7), **told)  # type: ignore[arg-type]


def test_other_classes_are_refused(network: Classifier, jpg_beton: Path) -> None:
    with pytest.raises(UserError, match="pass ignore_class_names"):
        evaluate(network, jpg_beton)


class Small(nn.Module):
    """A network of a user's own."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


def test_a_network_and_a_criterion_of_ones_own(small_betons: Betons, tmp_path: Path) -> None:
    """Trained, resumed to the end that is already reached, opened and evaluated; the records name both."""
    losses: list[torch.dtype] = []

    def squared(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses.append(logits.dtype)
        return (logits - nn.functional.one_hot(targets, 4)).square().mean()

    options = config(small_betons, tmp_path, "--logging.run=own", "--training.amp=bf16", "--validation.every=2")
    final = train(options, Small(), squared)
    assert set(losses) == {torch.float32}
    assert len(losses) == 12
    network = load_network(final, Small(), device="cpu")
    assert (network.config.model.arch, network.config.loss.name) == ("Small", "squared")
    assert network.class_names == ("class0", "class1", "class2", "class3")
    assert evaluate(network, small_betons[1], num_workers=1)["count"] == 50
    with pytest.raises(UserError, match=r"model.arch=Small is no classifier"):
        load_network(final, device="cpu")


def test_a_plain_pytorch_loss_equals_ours(small_betons: Betons, tmp_path: Path) -> None:
    one = "--training.epochs=1"
    finals = []
    for name, criterion in (("ours", None), ("theirs", nn.CrossEntropyLoss())):
        torch.manual_seed(0)
        options = config(small_betons, tmp_path, f"--logging.run={name}", "--loss.name=ce", one, "--training.amp=off")
        finals.append(train(options, Small(), criterion))
    ours, theirs = (load_network(final, Small(), device="cpu").model.state_dict() for final in finals)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused_before_a_step(small_betons: Betons, tmp_path: Path) -> None:
    options = config(small_betons, tmp_path)

    def per_sample(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    trainable = nn.Module()
    trainable.weight = nn.Parameter(torch.ones(1))
    for arguments, error, message in [
        ((Small(7),), UserError, "Small has 7 outputs, but there are 4 classes; .* set model.num_classes=7"),
        ((nn.Conv2d(3, 4, 3),), UserError, "Conv2d is no image classifier"),
        (("resnet50",), TypeError, "model must be a torch.nn.Module, not str"),
        ((None, 3), TypeError, "criterion must be"),
        ((Small(), trainable), ValueError, "has parameters of its own"),
        ((Small(), per_sample), ValueError, r"must return the mean loss of the batch, .* not \(16,\)"),
    ]:
        with pytest.raises(error, match=message):
            train(options, *arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="use_blurpool is for networks that are made by name"):
        train(config(small_betons, tmp_path, "--model.use_blurpool=1"), Small())
    with pytest.raises(TypeError, match="config must be a RunConfig"):
        train({})  # type: ignore[arg-type]
