"""Publish a checkpoint on the Hugging Face hub, with a card written from its run; --help describes every option.

python -m ffcv_train push --checkpoint runs/my_run/final.pt --to organisation/name --dry-run
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.cli.arguments import parse_request
from ffcv_train.cli.export import EXPORT_DEFAULTS, add_images_option, open_exportable, sentence
from ffcv_train.evaluation.subject import Request
from ffcv_train.publish.push import check_repo, upload, write_folder
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

DESCRIPTION = """Publish a checkpoint's network on the Hugging Face hub: weights, configuration, and a model card.

python -m ffcv_train push --checkpoint runs/my_run/final.pt --to organisation/name --dry-run

The card is written from what lies in the run's folder: data, recipe, command, metrics with their spread over the runs
beside it that differ in the seed alone, and what `eval` wrote there with --output and --per-class. A network that
timm has becomes a folder for timm.create_model("hf-hub:organisation/name", pretrained=True), another
model.safetensors. With --dry-run nothing is sent.
The hub is that of HF_ENDPOINT, the user that of HF_TOKEN or of: hf auth login.
"""


def parse_push_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments of `push`. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--to", metavar="ORG/NAME", help="the repository; made where it is missing")
        group.add_argument(
            "--folder", type=expand_path, metavar="DIR", help="write the files here [beside the checkpoint, named hub]"
        )
        group.add_argument("--license", default="unknown", metavar="ID", help="the card's licence, mit say [unknown]")
        group.add_argument("--private", action="store_true", help="a repository that is made is private")
        group.add_argument("--dry-run", action="store_true", help="write the folder, and send nothing")
        add_images_option(group)

    request = parse_request(
        argv, description=DESCRIPTION, add_options=add_options, defaults=EXPORT_DEFAULTS, needs_data_set=False
    )
    if request.options.to is None:
        raise UserError("nowhere to publish; give the repository with --to organisation/name")
    check_repo(request.options.to)
    return request


def main(argv: Sequence[str]) -> None:
    """Parse, write the folder, send it."""
    request = parse_push_request(argv)
    options = request.options
    folder = Path(options.folder) if options.folder else Path(request.subject.path).parent / "hub"
    classifier, description, images, source = open_exportable(request, "push")
    library, check = write_folder(classifier, description, folder, options.to, options.license, images)
    print(sentence(check, source))
    print(f"for {library}: {folder}")
    if not options.dry_run:
        print(f"published: {upload(folder, options.to, options.private)}")
