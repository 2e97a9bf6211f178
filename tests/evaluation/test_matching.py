"""Classes by their names: every command and format counts a sample under the class that its name says, or refuses.

The reference runs the network on the files themselves, each with the label of its folder's name, found by hand. What a
refusal advises is done, and has to lead to the reference too.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ffcv_train import evaluate, load_network, open_data_set
from ffcv_train.cli import evaluate as eval_command
from ffcv_train.cli import gradcam, logits, measure, transfer
from ffcv_train.cli.compare import parse_plan
from ffcv_train.comparison.plan import ComparisonPlan, check_plan, measure_command, train_command
from ffcv_train.comparison.report import summarise_runs
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.open import open_data_sets
from ffcv_train.evaluation.transfer import common_classes
from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.models.class_names import imagenet_names
from ffcv_train.system.errors import UserError
from tests.support.checkpoints import SMALL_EVALUATION, varied_network, write_checkpoint
from tests.support.photographs import crops_of_photographs

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NUMBERS = [str(number) for number in range(12)]
ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]
WORDNET = [imagenet_names().keys[label] for label in (7, 999, 1, 30, 31, 500, 0, 2, 281, 282, 600, 601)]


def network(outputs: int) -> nn.Module:
    return varied_network(outputs, seed=outputs)


def checkpoint(path: Path, outputs: int, names: Sequence[str] | None) -> list[str]:
    """The options that name a checkpoint of ours, or without `names` one of another program."""
    model, path = network(outputs), path / f"{outputs}.pt"
    if names is None:
        torch.save(model.state_dict(), path)
        statistics = [f"--data.mean={','.join(map(str, MEAN))}", f"--data.std={','.join(map(str, STD))}"]
        return ["--checkpoint", str(path), "--model.arch=cifar_resnet20", *statistics]
    config = load_config(RunConfig, ["--model.arch=cifar_resnet20"])
    # The list of the training's classes is no business of other data sets.
    data = replace(config.data, classes="of_the_training.txt", mean=MEAN, std=STD)
    write_checkpoint(path, replace(config, data=data), model, names, outputs, (MEAN, STD))
    return ["--checkpoint", str(path)]


def photographs(folder: Path, names: Sequence[str], per_class: int = 2) -> Path:
    """A folder of images of 32 × 32 pixels for each of `names`, stored without loss."""
    images = iter(crops_of_photographs(per_class * len(names), 32, 32, seed=5))
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(next(images)).save(folder / name / f"{name}_{number}.png")
    return folder


def as_format(folder: Path, kind: str, classes: str = "") -> list[str]:
    """The options that name the images of `folder` as a data set of `kind`: labels are positions in text order."""
    if kind == "folder":
        listed = [f"--data.classes={classes}"] if classes else []
        return [f"--data.val_dataset={folder}", "--data.format=folder", *listed]
    if kind == "beton":
        path = folder.with_name(f"{folder.name}{len(classes)}.beton")
        convert(
            WriteConfig(data_dir=str(folder), write_path=str(path), write_mode="raw", num_workers=1, classes=classes)
        )
        return [f"--data.val_dataset={path}"]
    archive = folder.with_suffix(".zip")
    order = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*.png"))
    with zipfile.ZipFile(archive, "w") as content:
        for file in files:
            content.write(file, f"{file.parent.name}/{file.name}")
    lines = [f"{file.parent.name}/{file.name}\t{order.index(file.parent.name)}\n" for file in files]
    archive.with_name(f"{archive.stem}_map.txt").write_text("".join(lines))
    return [f"--data.val_dataset={archive}", "--data.format=zip", *([f"--data.classes={classes}"] if classes else [])]


def expected(folder: Path, outputs: int, label_of: dict[str, int]) -> tuple[float, np.ndarray]:
    """(mean NLL, logits sorted by file) by the network alone."""
    files = sorted(folder.glob("*/*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).float() / 255
    with torch.no_grad():
        found = network(outputs)(((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous())
    labels = torch.tensor([label_of[file.parent.name] for file in files])
    return nn.functional.cross_entropy(found.double(), labels).item(), found.numpy()


def by_name(names: Sequence[str]) -> dict[str, int]:
    return {name: label for label, name in enumerate(names)}


def report(tmp_path: Path, *words: str) -> dict[str, Any]:
    eval_command.main([*words, *SMALL_EVALUATION, "--validation.lr_tta=0", "--output", str(tmp_path / "m.json")])
    return json.loads((tmp_path / "m.json").read_text())


def nll(tmp_path: Path, *words: str) -> float:
    return float(report(tmp_path, *words)["results"][0]["nll"])


def listed(path: Path, names: Sequence[str]) -> str:
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


REVERSED = ANIMALS[::-1]
BY_NUMBER = {name: int(name) for name in NUMBERS}


@pytest.mark.parametrize("kind", ["folder", "zip", "beton"])
@pytest.mark.parametrize(
    ("outputs", "theirs", "ours", "label_of", "note"),
    [
        (12, NUMBERS, NUMBERS, BY_NUMBER, "in another order"),
        (12, sorted(NUMBERS), NUMBERS, by_name(sorted(NUMBERS)), ""),
        (12, REVERSED, ANIMALS, by_name(REVERSED), "in another order"),
        (12, ANIMALS, ANIMALS[1:8], by_name(ANIMALS), "7 of 12"),  # what lacks a class
        (12, ANIMALS, ANIMALS[:5], by_name(ANIMALS), ""),
        (1000, None, NUMBERS, BY_NUMBER, "called by numbers"),  # ImageNetV2's folders
        (1000, imagenet_names().keys, NUMBERS, BY_NUMBER, "called by numbers"),
        (1000, None, WORDNET, by_name(imagenet_names().keys), "12 of 1000"),  # ImageNet-A's and others
        (1000, [*map(str, range(1000))], WORDNET, by_name(imagenet_names().keys), "12 of 1000"),
    ],
)
def test_labels_are_what_names_say(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    outputs: int,
    theirs: Sequence[str] | None,
    ours: Sequence[str],
    label_of: dict[str, int],
    note: str,
) -> None:
    folder = photographs(tmp_path / "images", ours)
    found = report(tmp_path, *checkpoint(tmp_path, outputs, theirs), *as_format(folder, kind))
    assert found["results"][0]["nll"] == pytest.approx(expected(folder, outputs, label_of)[0], rel=1e-5)
    assumed = outputs == 1000 and theirs != imagenet_names().keys
    assert [text for text in found["notes"] if note not in text] == [
        f"{tmp_path}/1000.pt has 1000 classes without names: they are taken for ImageNet's"
    ] * assumed
    assert len(found["notes"]) == bool(note) + assumed
    assert capsys.readouterr().out.count("note: ") == len(found["notes"])


@contextlib.contextmanager
def refused(*wanted: str) -> Iterator[None]:
    with pytest.raises(UserError) as caught:
        yield
    for text in wanted:
        assert text in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "zip", "beton"])
def test_numbers_that_nothing_explains(tmp_path: Path, kind: str) -> None:
    """Twelve outputs without names: is 10 the tenth class, or the third as text is sorted?"""
    folder, model = photographs(tmp_path / "images", NUMBERS), checkpoint(tmp_path, 12, None)
    given = [*model, *as_format(folder, kind)]
    option = "--cfg.classes=FILE" if kind == "beton" else "--data.classes=FILE"
    with refused("calls label 2 '10'", "the numbers from 0 to 11", option, "--ignore-class-names"):
        nll(tmp_path, *given)
    numbered = as_format(folder, kind, listed(tmp_path / "list.txt", NUMBERS))
    assert nll(tmp_path, *model, *numbered) == pytest.approx(expected(folder, 12, BY_NUMBER)[0], rel=1e-5)
    as_text = expected(folder, 12, by_name(sorted(NUMBERS)))[0]
    given = [*model, *as_format(folder, kind)]
    assert nll(tmp_path, *given, "--ignore-class-names") == pytest.approx(as_text, rel=1e-5)


@pytest.mark.parametrize("kind", ["folder", "zip", "beton"])
def test_numbers_for_a_network_with_other_names(tmp_path: Path, kind: str) -> None:
    folder, model = photographs(tmp_path / "images", NUMBERS), checkpoint(tmp_path, 12, ANIMALS)
    with refused("which ", "has not; its first is 'ant'", "those from 0 to 11", "and pass --ignore-class-names"):
        nll(tmp_path, *model, *as_format(folder, kind))
    numbered = as_format(folder, kind, listed(tmp_path / "list.txt", NUMBERS))
    found = nll(tmp_path, *model, *numbered, "--ignore-class-names")
    assert found == pytest.approx(expected(folder, 12, BY_NUMBER)[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["folder", "zip", "beton"])
@pytest.mark.parametrize("named", [True, False])
def test_other_names_of_fewer_classes(tmp_path: Path, kind: str, named: bool) -> None:
    """The advice names the list that makes the labels right, whether or not the network names its classes."""
    ours = [name.upper() + "S" for name in ANIMALS]
    folder, model = photographs(tmp_path / "images", ours[2:9]), checkpoint(tmp_path, 12, ANIMALS if named else None)
    ignore = ["--ignore-class-names"] if named else []
    with refused("all 12", "in a file, a line each", *ignore):
        nll(tmp_path, *model, *as_format(folder, kind))
    given = as_format(folder, kind, listed(tmp_path / "list.txt", ours))
    assert nll(tmp_path, *model, *given, *ignore) == pytest.approx(expected(folder, 12, by_name(ours))[0], rel=1e-5)


def test_other_names_of_as_many_classes(tmp_path: Path) -> None:
    ours = [name.upper() + "S" for name in ANIMALS]
    folder, model = photographs(tmp_path / "images", ours), checkpoint(tmp_path, 12, ANIMALS)
    given = [*model, *as_format(folder, "folder")]
    with refused("has the class 'ANTS' (and 11 more)", "in the same order, pass --ignore-class-names"):
        nll(tmp_path, *given)
    found = report(tmp_path, *given, "--ignore-class-names")
    assert found["results"][0]["nll"] == pytest.approx(expected(folder, 12, by_name(ours))[0], rel=1e-5)
    assert "calls label 0 'ANTS'" in found["notes"][0]


def test_a_number_that_is_no_label_of_imagenets_is_refused(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", ["0", "999", "1000"], 1)
    with refused("has the class '1000', and ", "has the labels 0 … 999; take it out"):
        nll(tmp_path, *checkpoint(tmp_path, 1000, None), *as_format(folder, "folder"))


def test_as_many_outputs_as_imagenet_are_not_its_classes_by_that(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", ANIMALS)
    for names in (None, [f"class {label}" for label in range(1000)]):
        with refused("1000"):
            nll(tmp_path, *checkpoint(tmp_path, 1000, names), *as_format(folder, "folder"))


def test_the_number_of_outputs_is_no_reason_to_trust_labels(tmp_path: Path) -> None:
    folder, model = photographs(tmp_path / "images", ANIMALS[3:]), checkpoint(tmp_path, 12, None)
    for extra in ([], ["--model.num_classes=12"]):
        with refused("has 12 classes without names", "has 9"):
            nll(tmp_path, *model, *extra, *as_format(folder, "folder"))


@pytest.mark.parametrize("with_map", [True, False])
def test_a_zip_whose_names_are_its_labels(tmp_path: Path, with_map: bool) -> None:
    """Class folders 0 … 11 with the labels of their names, for a network that was trained on the folders."""
    folder = photographs(tmp_path / "val", NUMBERS)
    archive, files = tmp_path / "val.zip", sorted(folder.glob("*/*.png"))
    lines = "".join(f"{file.parent.name}/{file.name}\t{file.parent.name}\n" for file in files)
    with zipfile.ZipFile(archive, "w") as content:
        for file in files:
            content.write(file, file.name)
    (tmp_path / "val_map.txt").write_text(re.sub(r"^\d+/", "", lines, flags=re.MULTILINE))
    if with_map:
        (tmp_path / "train_map.txt").write_text(lines)
    given = [*checkpoint(tmp_path, 12, sorted(NUMBERS)), f"--data.val_dataset={archive}", "--data.format=zip"]
    if not with_map:
        with refused("nothing names the classes", "calls label 2 '10'", "--data.classes=FILE", "--ignore-class-names"):
            nll(tmp_path, *given)
        ignored = nll(tmp_path, *given, "--ignore-class-names")
        assert ignored == pytest.approx(expected(folder, 12, BY_NUMBER)[0], rel=1e-5)
        given.append(f"--data.classes={listed(tmp_path / 'list.txt', NUMBERS)}")
    found = report(tmp_path, *given)
    assert found["results"][0]["nll"] == pytest.approx(expected(folder, 12, by_name(sorted(NUMBERS)))[0], rel=1e-5)
    assert "matched by name" in found["notes"][0]


@pytest.mark.parametrize("kind", ["zip", "beton"])
def test_what_nothing_names_has_no_names_in_either_format(tmp_path: Path, kind: str) -> None:
    files = sorted(photographs(tmp_path / "images", ANIMALS).glob("*/*.png"))
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as content:
        for file in files:
            content.write(file, file.name)
    (tmp_path / "val_map.txt").write_text("".join(f"{f.name}\t{ANIMALS.index(f.parent.name)}\n" for f in files))
    path = tmp_path / f"val.{kind}"
    if kind == "beton":
        data = {"dataset": "zip", "split": "val", "data_dir": str(tmp_path)}
        convert(WriteConfig(write_path=str(path), write_mode="raw", num_workers=1, **data))
    assert open_data_set(path).class_names is None
    found = report(tmp_path, *checkpoint(tmp_path, 12, ANIMALS), f"--data.val_dataset={path}", f"--data.format={kind}")
    assert found["results"][0]["nll"] == pytest.approx(expected(tmp_path / "images", 12, by_name(ANIMALS))[0], rel=1e-5)
    assert "nothing names the classes of" in found["notes"][0]


def test_names_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", ["cafe\u0301", "bee"])
    for name, shown in (("caf\u00e9", r"(cafe\u0301), "), ("Cafe\u0301", "'cafe\u0301', ")):
        with refused(
            f"has the class 'cafe\u0301' {shown}" if "(" in shown else f"has the class {shown}", "the same name"
        ):
            nll(tmp_path, *checkpoint(tmp_path, 2, ["bee", name]), *as_format(folder, "folder"))


def test_two_classes_of_one_name_are_not_matched(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", ["crane", "maillot"])
    with refused("calls two classes 'crane', which cannot be told apart"):
        nll(tmp_path, *checkpoint(tmp_path, 3, ["maillot", "crane", "crane"]), *as_format(folder, "folder"))


def test_a_class_list_for_a_beton_is_refused(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", ANIMALS)
    beton, names = as_format(folder, "beton"), listed(tmp_path / "list.txt", ANIMALS)
    with refused("is a .beton file, which names its own"):
        nll(tmp_path, *checkpoint(tmp_path, 12, ANIMALS), *beton, f"--data.classes={names}")


# The other commands


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("sets") / "images", ANIMALS, 4)


def run(command: Callable[[Sequence[str]], None], *words: object) -> None:
    command([str(word) for word in words])


def test_logits_have_the_networks_labels_and_names(sets: Path, tmp_path: Path) -> None:
    model, output = checkpoint(tmp_path, 12, REVERSED), tmp_path / "l.pt"
    run(logits.main, *model, *as_format(sets, "folder"), *SMALL_EVALUATION, "--output", output)
    found = read_logits(output)
    assert found.class_names == tuple(REVERSED)
    assert found.labels.tolist() == [REVERSED.index(name) for name in ANIMALS for _ in range(4)]
    assert np.allclose(found.logits.numpy(), expected(sets, 12, by_name(ANIMALS))[1], atol=1e-4)


def test_python_has_the_networks_labels(sets: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 12, REVERSED)[1]
    classifier = load_network(path, device="cpu", amp="off", resolution=32, crop_ratio=1.0)
    found = evaluate(classifier, sets, num_workers=1)
    assert found["nll"] == pytest.approx(expected(sets, 12, by_name(REVERSED))[0], rel=1e-5)
    assert "in another order: they are matched by name" in found["notes"][0]
    names = listed(tmp_path / "list.txt", REVERSED)
    assert open_data_set(sets, classes=names).class_names == tuple(REVERSED)


def test_measure_has_the_networks_labels(sets: Path, tmp_path: Path) -> None:
    given = [*checkpoint(tmp_path, 12, REVERSED), *as_format(sets, "folder"), f"--data.train_dataset={sets}"]
    run(measure.main, *given, *SMALL_EVALUATION, "--output", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    wanted = expected(sets, 12, by_name(REVERSED))[0]
    assert (found["single"]["nll"], found["train"]["nll"]) == pytest.approx((wanted, wanted), rel=1e-5)


def test_gradcam_has_the_networks_labels(sets: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path, 12, REVERSED)
    for kind in ("beton", "zip"):
        data = as_format(sets, kind)[0].partition("=")[2]
        figure = ["--images", data, "--output", tmp_path / "g.png", "--indices", 0, 5]
        run(gradcam.main, *model, *figure, "--validation.resolution=32", "--training.device=cpu")
        (row,) = json.loads((tmp_path / "g.json").read_text())["rows"]
        assert [cell["true"] for cell in row["images"]] == ["ant", "bee"]
    figure = ["--images", photographs(tmp_path / "spaced", [" bee "], 1), "--output", tmp_path / "g.png"]
    run(gradcam.main, *model, *figure, "--validation.resolution=32", "--training.device=cpu")
    (row,) = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert [cell["true"] for cell in row["images"]] == ["bee"]
    for folder in ("7", "n01491361"):
        photographs(tmp_path / folder, [folder], 1)
        model = [word for word in checkpoint(tmp_path, 1000, None) if "data." not in word]
        figure = ["--images", tmp_path / folder, "--output", tmp_path / "g.png"]
        run(gradcam.main, *model, *figure, "--validation.resolution=32", "--training.device=cpu")
        (row,) = json.loads((tmp_path / "g.json").read_text())["rows"]
        assert [cell["true"] for cell in row["images"]] == ["cock" if folder == "7" else "tiger shark"]


def test_transfer_matches_its_two_sets(sets: Path, tmp_path: Path) -> None:
    """The second lacks the first's first classes, so that its own numbers are others."""
    part = photographs(tmp_path / "part", ANIMALS[4:9], 4)
    count, val, notes = common_classes(open_data_set(sets), open_data_set(part))
    assert (count, val.labels.tolist()) == (12, [label for label in (4, 5, 6, 7, 8) for _ in range(4)])
    assert "5 of 12: they are matched by name" in notes[0]
    with refused("has the class 'zebra'", "make both of the same classes"):
        photographs(tmp_path / "other", ["zebra", "ant"], 4)
        files = ["--train", sets, "--val", tmp_path / "other", "--data.format=folder"]
        run(transfer.main, *checkpoint(tmp_path, 12, ANIMALS), *files, *SMALL_EVALUATION, "--output", tmp_path / "t")


@pytest.mark.parametrize("kind", ["folder", "zip", "beton"])
def test_validation_is_matched_to_training(sets: Path, tmp_path: Path, kind: str) -> None:
    part = photographs(tmp_path / "part", ANIMALS[4:9], 1)
    files = [f"--data.train_dataset={sets}", *as_format(part, kind), "--data.format=folder"]
    if kind == "zip":
        files = [as_format(sets, "zip")[0].replace("val_", "train_"), as_format(part, "zip")[0], "--data.format=zip"]
    data = open_data_sets(load_config(RunConfig, files))
    assert data.class_names == data.val.class_names == tuple(ANIMALS)
    assert data.val.labels.tolist() == [4, 5, 6, 7, 8]
    assert "5 of 12: they are matched by name" in data.notes[-1]
    photographs(part, ["zebra"], 1)
    with refused("has the class 'zebra'", "make both of the same classes"):
        open_data_sets(load_config(RunConfig, [*files[:1], *as_format(part, kind), *files[2:]]))


@pytest.mark.parametrize("with_map", [True, False])
def test_validation_that_only_the_training_map_names(tmp_path: Path, with_map: bool) -> None:
    """A flat val.zip of labels 0 … 11, whose folders in train_map.txt are in another order."""
    folder, names = photographs(tmp_path / "images", NUMBERS, 1), sorted(NUMBERS)
    files = sorted(folder.glob("*/*.png"))
    for split, base in (("train", ""), ("val", "flat")):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as content:
            for file in files:
                content.write(file, file.name if base else f"{file.parent.name}/{file.name}")
    lines = [f"{file.parent.name}/{file.name}\t{names.index(file.parent.name)}\n" for file in files]
    (tmp_path / "val_map.txt").write_text("".join(line.partition("/")[2] for line in lines))
    (tmp_path / "train_map.txt").write_text("".join(lines))
    train = f"--data.train_dataset={tmp_path / 'train.zip'}"
    if not with_map:  # training from the folder, whose order nothing says the zip to have
        (tmp_path / "train_map.txt").unlink()
        train = f"--data.train_dataset={as_format(folder, 'beton')[0].partition('=')[2]}"
    words = [train, f"--data.val_dataset={tmp_path / 'val.zip'}", "--data.format=zip"]
    if with_map:
        data = open_data_sets(load_config(RunConfig, words))
        assert data.class_names == data.val.class_names == tuple(names)
        assert [data.val.class_names[label] for label in data.val.labels] == [file.parent.name for file in files]
        return
    with refused("nothing names the classes of", "calls label 2 '10'", "--data.classes=FILE"):
        open_data_sets(load_config(RunConfig, words))
    data = open_data_sets(load_config(RunConfig, [*words, f"--data.classes={listed(tmp_path / 'list.txt', names)}"]))
    assert [names[label] for label in data.val.labels] == [file.parent.name for file in files]


# A list of classes, and the data sets that a command reads besides the first


def unnamed(folder: Path) -> Path:
    """A zip of the images of `folder` that lie in no class folder: labels are positions in `ANIMALS`."""
    archive, files = folder.with_name(f"{folder.name}_flat.zip"), sorted(folder.glob("*/*.png"))
    with zipfile.ZipFile(archive, "w") as content:
        for file in files:
            content.write(file, file.name)
    lines = [f"{file.name}\t{ANIMALS.index(file.parent.name)}\n" for file in files]
    archive.with_name(f"{archive.stem}_map.txt").write_text("".join(lines))
    return archive


def suites_of(report: dict[str, Any]) -> dict[str, Any]:
    """The records without the paths of the data sets."""
    found = report["suites"]
    for place in (found.get("calibration", {}).get("fitted_on", {}), *found.get("variants", {}).get("sets", ())):
        place.pop("data_set", None)
    found.get("groups", {}).pop("train_set", None)
    return found


@pytest.mark.parametrize("validation", ["folder", "beton"])
def test_a_list_names_the_classes_of_further_data_sets(sets: Path, tmp_path: Path, validation: str) -> None:
    """A zip that nothing names is the folder of the same images where the list says so; else its labels mislead."""
    part = photographs(tmp_path / "part", ANIMALS[2:9], 3)
    names = f"--data.classes={listed(tmp_path / 'list.txt', ANIMALS)}"
    given = [*checkpoint(tmp_path, 12, REVERSED), *as_format(sets, validation)]

    def suites(data: Path, *more: str, suite: str = "calibration,groups,variants") -> dict[str, Any]:
        takers = {"calibration": "calibrate-on", "groups": "train-set", "variants": "variant-data"}
        further = [f"--{takers[name]}={data}" for name in suite.split(",")]
        further += ["--many-over=2", "--few-under=2"] if "groups" in suite else []
        return suites_of(report(tmp_path, *given, f"--suite={suite}", *further, *more))

    wanted = suites(part)
    assert suites(unnamed(part), names) == wanted
    if validation == "beton":
        return
    misled = suites(unnamed(part), suite="calibration,groups")
    assert misled["calibration"] != wanted["calibration"] and misled["groups"] != wanted["groups"]
    with refused("nothing names the classes of", "--data.classes=FILE"):
        suites(unnamed(part), suite="variants")


def test_a_list_does_not_name_what_it_does_not_know(sets: Path, tmp_path: Path) -> None:
    """ImageNetV2's folders 0 … 999 beside a list of WordNet IDs, and samples of other kinds."""
    model, names = checkpoint(tmp_path, 1000, None), listed(tmp_path / "list.txt", imagenet_names().keys)
    folder = photographs(tmp_path / "images", WORDNET)
    version_2 = photographs(tmp_path / "v2", NUMBERS)
    given = [*model, *as_format(folder, "folder", names), "--suite=variants,ood", f"--variant-data={version_2}"]
    found = report(tmp_path, *given, "--ood-data", str(unnamed(sets)), str(sets))["suites"]
    assert found["variants"]["sets"][0]["classes"] == 12
    assert [one["shared_classes"] for one in found["ood"]["sets"]] == [[], []]


def test_a_list_reaches_both_sets_of_a_probe(tmp_path: Path) -> None:
    """In transfer, and in a comparison's plan and measures: the first names no class, the second few."""
    sets = photographs(tmp_path / "sets", ANIMALS, 6)
    part = photographs(tmp_path / "part", ANIMALS[4:9], 4)
    model, names = checkpoint(tmp_path, 12, ANIMALS), listed(tmp_path / "list.txt", ANIMALS)
    beton = as_format(part, "beton")[0].partition("=")[2]
    further = ["--train", unnamed(sets), "--val", beton, "--data.format=zip", f"--data.classes={names}"]
    run(transfer.main, *model, *further, *SMALL_EVALUATION, "--output", tmp_path)
    accuracy = json.loads((tmp_path / "transfer.json").read_text())["accuracy"]
    data = [*as_format(sets, "folder", names), f"--data.train_dataset={sets}"]
    further = ["--transfer-train", unnamed(sets), "--transfer-val", part]
    run(measure.main, *model, *data, *further, *SMALL_EVALUATION, "--output", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())["transfer"]
    assert (found["num_classes"], found["accuracy"]) == (12, accuracy)
    words = ["--losses=ce", "--seeds=0", "--out", tmp_path / "o", "--model.arch=cifar_resnet20", *further]
    plan = parse_plan(
        [str(word) for word in [*words, *data, *SMALL_EVALUATION, "--training.epochs=1", "--lr.lr_peak_epoch=0.5"]]
    )
    plan = replace(plan, config=replace(plan.config, training=replace(plan.config.training, batch_size=16)))
    check_plan(plan)
    assert f"--data.classes={names}" in measure_command(plan, plan.runs[0])


def test_a_list_for_what_is_probed_is_no_business_of_training_sets_that_are_betons(tmp_path: Path) -> None:
    """A comparison trains without it, and measures with it; where nothing takes it, it is refused."""
    sets = photographs(tmp_path / "sets", ANIMALS, 6)
    part = photographs(tmp_path / "part", ANIMALS[4:9], 4)
    names = f"--data.classes={listed(tmp_path / 'list.txt', ANIMALS)}"
    beton = as_format(sets, "beton")[0].partition("=")[2]
    data = [f"--data.train_dataset={beton}", f"--data.val_dataset={beton}", names]
    own = ["--losses=ce", "--seeds=0", "--out", tmp_path / "o", "--model.arch=cifar_resnet20", *SMALL_EVALUATION]
    words = [*own, *data, "--training.epochs=1", "--lr.lr_peak_epoch=0.5", "--training.batch_size=16"]

    def planned(*more: object) -> ComparisonPlan:
        plan = parse_plan([str(word) for word in [*words, *more]])
        check_plan(plan)
        return plan

    further = ["--transfer-train", unnamed(sets), "--transfer-val", part]
    plan = planned(*further)
    assert load_config(RunConfig, train_command(plan, plan.runs[0])[4:]).data.classes == ""
    assert names in measure_command(plan, plan.runs[0])
    model = checkpoint(tmp_path, 12, ANIMALS)
    run(measure.main, *model, *data, *further, *SMALL_EVALUATION, "--output", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["transfer"]["num_classes"] == 12
    assert summarise_runs(plan, {plan.runs[0]: found}, [])["criteria"]["ce"]["seeds"] == [0]
    for more in ([], ["--transfer-train", beton, "--transfer-val", beton]):
        with refused("is a .beton file, which names its own"):
            planned(*more)
    with refused("is a .beton file, which names its own"):
        run(measure.main, *model, *data, *SMALL_EVALUATION, "--output", tmp_path / "m.json")


def test_a_list_of_animals_leaves_a_probe_of_other_things_alone(sets: Path, tmp_path: Path) -> None:
    things = photographs(tmp_path / "things", ["car", "tram"], 6)
    data = [*as_format(sets, "folder", listed(tmp_path / "list.txt", ANIMALS)), f"--data.train_dataset={sets}"]
    further = ["--transfer-train", things, "--transfer-val", things]
    model = checkpoint(tmp_path, 12, ANIMALS)
    run(measure.main, *model, *data, *further, *SMALL_EVALUATION, "--output", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["transfer"]["num_classes"] == 2


def test_a_list_reaches_logits_and_gradcam(sets: Path, tmp_path: Path) -> None:
    archive, names = unnamed(sets), f"--data.classes={listed(tmp_path / 'list.txt', ANIMALS)}"
    model, output = checkpoint(tmp_path, 12, REVERSED), tmp_path / "l.pt"
    data = [f"--data.val_dataset={archive}", "--data.format=zip", names]
    run(logits.main, *model, *data, *SMALL_EVALUATION, "--output", output)
    assert read_logits(output).labels.tolist() == [REVERSED.index(name) for name in ANIMALS for _ in range(4)]
    figure = ["--images", archive, "--output", tmp_path / "g.png", "--indices", 0, 5, names]
    run(gradcam.main, *model, *figure, "--validation.resolution=32", "--training.device=cpu")
    (row,) = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert [cell["true"] for cell in row["images"]] == ["ant", "bee"]


def test_outputs_without_a_name_get_none_that_is_in_use(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", ["1", "3"], 1)
    options = [f"--data.{split}_dataset={folder}" for split in ("train", "val")]
    data = open_data_sets(load_config(RunConfig, [*options, "--data.format=folder", "--model.num_classes=4"]))
    assert data.class_names == ("1", "3", "2", "unnamed 3")
