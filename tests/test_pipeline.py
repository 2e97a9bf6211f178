"""The whole job through the scripts that users run: images → .beton → trained checkpoint → metrics → figure."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.support.photographs import ROOT, crops_of_photographs
from tests.support.runs import run_here


def script(*arguments: object) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_photographs_to_metrics(tmp_path: Path) -> None:
    """Writing and training in programs of their own, the rest in this one."""
    tints = {"blue": 2, "green": 1, "red": 0}
    for split, count in (("train", 72), ("val", 31)):
        for index, image in enumerate(crops_of_photographs(count, 40, 90, seed=len(split))):
            name, channel = sorted(tints.items())[index % 3]
            image[:, :, channel] = image[:, :, channel] // 2 + 127
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.JPEG", quality=92)
        script(
            "write_dataset.py",
            f"--cfg.split={split}",
            f"--cfg.data_dir={tmp_path}",
            f"--cfg.write_path={tmp_path / split}.beton",
            "--cfg.write_mode=proportion",
            "--cfg.max_resolution=64",
            "--cfg.num_workers=1",
        )
    run_here("write_dataset.py", "--verify", tmp_path / "train.beton")
    output = script(
        "train_imagenet.py",
        "--config-file=ffcv_train/cli/quickstart.yaml",
        f"--data.train_dataset={tmp_path / 'train.beton'}",
        f"--data.val_dataset={tmp_path / 'val.beton'}",
        "--data.num_workers=1",
        "--training.batch_size=12",
        "--training.epochs=6",
        "--resolution.start_ramp=1",
        "--resolution.end_ramp=4",
        "--lr.lr=0.05",
        "--lr.lr_peak_epoch=2",
        f"--logging.folder={tmp_path}",
        "--logging.run=run",
    )
    assert "3 classes, 72 training and 31 validation images" in output
    metrics_file = tmp_path / "metrics.json"
    run_here(
        "eval.py", f"--checkpoint={tmp_path / 'run' / 'final.pt'}", f"--output={metrics_file}", "--data.num_workers=1"
    )
    metrics = json.loads(metrics_file.read_text())["results"][0]
    logged = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert metrics["count"] == 31
    assert metrics["top_1"] == logged["top_1"] > 0.6
    run_here("viz/reliability.py", f"--metrics={metrics_file}", f"--output={tmp_path / 'reliability.png'}")
    assert (tmp_path / "reliability.png").stat().st_size > 10_000
