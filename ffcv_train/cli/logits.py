"""Write the logits, and on request the features, of every sample of a data set; --help describes every option.

ffcv-train logits --checkpoint runs/my_run/final.pt --output maxsup.pt --features
"""

import argparse
from collections.abc import Sequence

from ffcv_train.cli.arguments import add_class_names_option, parse_request
from ffcv_train.evaluation.extraction import write_logits
from ffcv_train.evaluation.subject import Request
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

DESCRIPTION = """Write the logits of every sample of a data set to a file that the other commands read.

ffcv-train logits --checkpoint runs/my_run/final.pt --output maxsup.pt --features

The data set is the checkpoint's own validation set unless --data.val_dataset names another; images are cut as in
evaluation, at the first of validation.resolution. The network runs in float32 unless --training.amp says otherwise:
logits of bf16 lie in steps of 1/16 around 10. Other checkpoints than ffcv-train train's need --model.arch.
"""


def parse_logits_request(argv: Sequence[str]) -> Request:
    """Resolve the arguments of ffcv-train logits. Raises `UserError`."""

    def add_options(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--output", type=expand_path, metavar="FILE", help="the file to write, L.pt say")
        group.add_argument("--features", action="store_true", help="store the penultimate features as well")
        add_class_names_option(group)

    request = parse_request(argv, description=DESCRIPTION, add_options=add_options, defaults={"training.amp": "off"})
    if request.output is None:
        raise UserError("nowhere to write the logits to; give --output FILE")
    return request


def main(argv: Sequence[str]) -> None:
    """Parse, extract, write."""
    request = parse_logits_request(argv)
    with process_group(request.config.training.device) as process:
        about = write_logits(request, process)
        if process.is_main:
            print(f"logits of {about['data_set']}: {request.output}")
