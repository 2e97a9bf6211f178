"""Draw penultimate features on the plane of three class templates (Müller et al., arXiv:1906.02629), side by side.

ffcv-train projection --input maxsup.pt ls.pt --labels MaxSup LS --classes cat dog truck --output projection

Without --classes, the three classes of most similar templates and the three that are most often confused. The files
need features: ffcv-train logits --features. Writes projection.png, .svg and .json.
"""

from collections.abc import Sequence
from pathlib import Path

from ffcv_train.analysis.figures.inputs import check_inputs_agree
from ffcv_train.analysis.figures.projection import (
    SAMPLES,
    choose_classes,
    class_text,
    draw_projections,
    parse_classes,
    project,
)
from ffcv_train.analysis.figures.style import save_both
from ffcv_train.cli.figure_arguments import input_parser, read_inputs
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json


def main(argv: Sequence[str]) -> None:
    """Parse, read, choose, draw."""
    parser = input_parser(__doc__)
    parser.add_argument("--classes", nargs=3, metavar="CLASS", help="three class names or labels [chosen, see above]")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help=f"samples per class [{SAMPLES}]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which samples are drawn [0]")
    parser.add_argument("--own-axes", action="store_true", help="give each input axes of its own")
    options = parser.parse_args(argv)
    if options.samples < 1 or options.seed < 0:
        raise UserError("--samples must be at least 1 and --seed at least 0")
    inputs, folder = read_inputs(options), Path(options.output)
    names = check_inputs_agree(inputs)
    for one in inputs:
        one.file.need_features()
        one.file.need_weight()
    choices = [parse_classes(options.classes, inputs, names)] if options.classes else choose_classes(inputs)
    points = [[project(one, choice.triple, options.samples, options.seed) for one in inputs] for choice in choices]
    labels = [one.label for one in inputs]
    save_both(draw_projections(labels, choices, points, names, options.own_axes), folder, "projection")
    records = [
        {
            "classes": list(choice.triple),
            "names": [class_text(label, names) for label in choice.triple],
            "reason": choice.reason,
            "points": {label: [cloud.tolist() for cloud in clouds] for label, clouds in zip(labels, line, strict=True)},
        }
        for choice, line in zip(choices, points, strict=True)
    ]
    files = {one.label: str(one.file.path) for one in inputs}
    write_json(folder / "projection.json", {"format": 1, "inputs": files, "seed": options.seed, "planes": records})
    for choice, line in zip(choices, points, strict=True):
        fewest = min(len(cloud) for clouds in line for cloud in clouds)
        few = f" (samples of the smallest class: {fewest})" if fewest < options.samples else ""
        classes = ", ".join(class_text(label, names) for label in choice.triple)
        print(f"{classes}: {choice.reason or 'as named'}{few}")
    print(f"figure: {folder / 'projection.png'}")
