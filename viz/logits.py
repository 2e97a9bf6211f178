"""Write the logits, and on request the features, of every sample of a data set; --help describes every option.

python viz/logits.py --checkpoint runs/my_run/final.pt --output maxsup.pt --features
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.distributed import process_group
from ffcv_train.errors import run_main
from ffcv_train.extraction import parse_logits_request, write_logits


def main() -> None:
    """Parse, extract, write."""
    request = parse_logits_request(sys.argv[1:])
    with process_group(request.config.training.device) as process:
        about = write_logits(request, process)
        if process.is_main:
            print(f"logits of {about['data_set']}: {request.output}")


if __name__ == "__main__":
    run_main(main)
