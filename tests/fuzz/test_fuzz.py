"""A share of fuzz/run.py through its command, that it notices what it is to find, and what it has found."""

import ctypes
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.data.format.layout import IMAGE, SAMPLE
from ffcv_train.data.format.verify import verify
from ffcv_train.data.kernels import jpeg
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop, crop_parameters
from ffcv_train.data.kernels.decode import BAD_HEADER, BAD_JPEG
from ffcv_train.data.loading import beton_loader as loader_module
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.system.errors import UserError
from fuzz import betons as betons_module
from fuzz import jpeg_mutations, jpegs, run, second_opinion
from fuzz.beton_mutations import Layout, write_seeds
from fuzz.guard import GuardedDecoder, GuardedMemory, GuardError, Request
from fuzz.supervisor import supervise
from tests.fuzz.faulty_fuzzer import FAULTS, FaultyFuzzer
from tests.support.photographs import ROOT

PHOTOGRAPH = load_sample_images().images[0][:, :, ::-1].copy()


@pytest.fixture(scope="module")
def decoder() -> GuardedDecoder:
    return GuardedDecoder(1 << 22, 1 << 21)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.fixture
def beton(seeds: Path, tmp_path: Path) -> Path:
    """A sound file of JPEGs with tiles, to be damaged."""
    path = tmp_path / "photos.beton"
    shutil.copy(seeds / "tiles.beton", path)
    shutil.copy(sidecar_path(seeds / "tiles.beton"), sidecar_path(path))
    return path


def request(data: bytes, height: int, width: int) -> Request:
    stored = np.frombuffer(data, np.uint8)
    return Request(stored, 0, height, width, 0, crop_parameters(CenterCrop(0.3)), 16)


# What fuzzing has found.


def test_a_scan_header_that_ends_with_the_file_is_not_read_beyond(decoder: GuardedDecoder) -> None:
    data = jpeg_mutations.encode(PHOTOGRAPH[:64, :64], "4:2:0", 2, "sequential")
    scan = data.index(b"\xff\xda")
    for length in range(2, 12):
        short = data[: scan + 2] + length.to_bytes(2, "big") + data[scan + 4 : scan + 2 + length]
        header = np.zeros(jpeg.HEADER_FIELDS, np.int64)
        assert not jpeg.parse_header(np.frombuffer(short, np.uint8), header)
        assert decoder.decode(request(short, 64, 64))[0] == BAD_HEADER


@pytest.mark.parametrize(("marker", "interval"), [(b"\xff\xdb", 0), (b"\xff\xdb", 2), (b"\xff\xc4", 0)])
def test_tables_of_the_image_before_are_not_used(decoder: GuardedDecoder, marker: bytes, interval: int) -> None:
    pixels = PHOTOGRAPH[:64, :64]
    before = jpeg_mutations.encode(pixels, "4:2:0", interval, "optimised")
    data = jpeg_mutations.encode(pixels, "4:2:0", interval, "optimised")
    without = data.replace(marker, b"\xff\xe5")
    assert decoder.decode(request(before, 64, 64))[0] == 0
    problem, _ = decoder.decode(request(without, 64, 64))
    assert problem == BAD_JPEG


@pytest.mark.parametrize("complains", [True, False])
def test_very_many_scans_are_refused_soon(decoder: GuardedDecoder, complains: bool) -> None:
    """36 bytes make the decoder go over the whole image once more, whether it complains about that scan or not."""
    data = jpeg_mutations.encode(np.full((1000, 1000, 3), 127, np.uint8), "grey", 0, "progressive")
    tables = [i for i in range(len(data)) if data.startswith(b"\xff\xc4", i)]
    if complains:  # the last refinement, of which there is one
        many = data[:-2] + data[tables[-1] : -2] * 3000 + b"\xff\xd9"
    else:  # coefficients 6 to 63 at once, after which any number of such scans may follow
        scan = data[tables[2] : tables[3]].replace(b"\x06\x3f\x02", b"\x06\x3f\x00")
        many = data[: tables[1]] + scan * 3000 + b"\xff\xd9"
        assert decoder.decode(request(data[: tables[1]] + scan * 9 + b"\xff\xd9", 1000, 1000))[0] == 0
    start = time.process_time()
    assert decoder.decode(request(many, 1000, 1000))[0] == BAD_JPEG
    assert time.process_time() - start < 2


def test_fill_bytes_before_a_restart_marker_are_allowed(decoder: GuardedDecoder) -> None:
    data = jpeg_mutations.encode(PHOTOGRAPH[:96, :96], "4:2:0", 3, "sequential")
    start = jpeg_mutations.header_segments(data)[-1][2]
    ends = [end for _, end, _ in jpeg_mutations.entropy_segments(data, start)]
    filled = bytearray(data)
    for number, end in reversed(list(enumerate(ends))):
        filled[end:end] = b"\xff" * (number % 3)
    _, expected = decoder.decode(request(data, 96, 96))
    expected = expected.copy()
    problem, image = decoder.decode(request(bytes(filled), 96, 96))
    assert problem == 0 and np.array_equal(image, expected)


@pytest.mark.parametrize("sampling", sorted(jpeg_mutations.SAMPLINGS))
def test_reduced_tiles_show_what_the_reduced_whole_shows(decoder: GuardedDecoder, sampling: str) -> None:
    """At a quarter of the size chroma upsampling looks four pixels beyond the crop."""
    data = jpeg_mutations.encode(PHOTOGRAPH[:256, :256], sampling, 2, "sequential")
    opinion = second_opinion.SecondOpinion(decoder)
    parameters = crop_parameters(RandomResizedCrop((0.1, 0.6), dct_scaling=True))
    for index in range(80):
        for resolution in (8, 16, 32):
            stored = np.frombuffer(data, np.uint8)
            wanted = Request(stored, 0, 256, 256, index, parameters, resolution)
            problem, image = decoder.decode(wanted)
            assert problem == 0 and opinion.of(wanted, image) == ""


def patch(path: Path, offset: int, value: np.generic) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.tobytes())


def row_offset(path: Path, sample: int, field: str) -> int:
    start = Layout.of(path.read_bytes()).samples + sample * SAMPLE.itemsize
    return start + IMAGE.fields[field][1]  # type: ignore[index]


def test_a_pointer_to_another_samples_image_is_refused(beton: Path) -> None:
    sidecar_path(beton).unlink()
    patch(beton, row_offset(beton, 3, "data_ptr"), np.uint64(open_beton(beton).ptrs[5]))
    with pytest.raises(UserError, match=r"sample 3 points to byte .* which holds the image of sample 5"):
        open_beton(beton)


def test_tables_that_differ_from_the_sidecars_checksum_are_refused(beton: Path) -> None:
    height = open_beton(beton).heights[2]
    patch(beton, row_offset(beton, 2, "height"), np.uint16(height + 1))
    with pytest.raises(UserError, match=r"tables .* differ from their checksum"):
        open_beton(beton)


def test_exchanged_sides_of_raw_pixels_are_found_by_the_checksum(seeds: Path, tmp_path: Path) -> None:
    """Nothing else can tell: the size fits, and the label."""
    path = tmp_path / "raw.beton"
    shutil.copy(seeds / "raw.beton", path)
    shutil.copy(sidecar_path(seeds / "raw.beton"), sidecar_path(path))
    verify(path)
    opened = open_beton(path)
    patch(path, row_offset(path, 2, "height"), np.uint16(opened.widths[2]))
    patch(path, row_offset(path, 2, "width"), np.uint16(opened.heights[2]))
    for check in (open_beton, verify):
        with pytest.raises(UserError, match=r"tables .* differ from their checksum"):
            check(path)


def claim(path: Path, sample: int, height: int, width: int) -> None:
    """Say in the sample table and in the JPEG that an image is as large as that."""
    opened = open_beton(path)
    ptr = int(opened.ptrs[sample])
    patch(path, row_offset(path, sample, "height"), np.uint16(height))
    patch(path, row_offset(path, sample, "width"), np.uint16(width))
    frame = path.read_bytes().index(b"\xff\xc0", ptr)
    patch(path, frame + 5, np.frombuffer(height.to_bytes(2, "big") + width.to_bytes(2, "big"), np.uint8))  # type: ignore[arg-type]


def test_more_pixels_than_the_bytes_can_hold_are_refused_before_memory_is_taken(beton: Path) -> None:
    sidecar_path(beton).unlink()
    claim(beton, 4, 65535, 65535)
    with pytest.raises(UserError, match=r"sample 4 .* claims more pixels than its bytes can hold"):
        open_beton(beton)


def test_a_loader_that_cannot_have_its_memory_names_the_image(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_beton(beton)
    largest = int(np.argmax(opened.pixels()))

    def too_much(size: int, *_: object) -> None:
        assert size == opened.pixels(largest) * 3
        raise MemoryError

    monkeypatch.setattr(loader_module, "Scratch", too_much)
    with pytest.raises(
        UserError, match=rf"sample {largest} .* {opened.widths[largest]} × .* more memory than there is"
    ):
        BetonLoader(
            opened,
            2,
            crop=CenterCrop(),
            resolution=8,
            device=torch.device("cpu"),
            order="sequential",
            num_workers=1,
        )


@pytest.mark.parametrize("coding", ["sequential", "optimised", "progressive"])
@pytest.mark.parametrize("sampling", ["grey", "4:2:0"])
def test_the_emptiest_sound_jpeg_is_not_refused(sampling: str, coding: str) -> None:
    for pixels in (np.zeros((3000, 3000, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        data = jpeg_mutations.encode(pixels, sampling, 0, coding)
        assert pixels[:, :, 0].size < betons_module._MAX_PIXELS_PER_BYTE * len(data)


@pytest.mark.parametrize("value", [True, 3.5, "x", {"a": 1}, [None] * 12])
def test_a_sidecars_files_must_be_names(beton: Path, value: object) -> None:
    sidecar = json.loads(sidecar_path(beton).read_text())
    sidecar_path(beton).write_text(json.dumps({**sidecar, "files": value}))
    with pytest.raises(UserError, match="does not describe"):
        open_beton(beton)


@pytest.mark.parametrize(("value", "opens"), [(None, True), (3, False), ({}, False), ({"tables": "xyz"}, False)])
def test_opening_and_verifying_agree_on_checksums_that_are_none(beton: Path, value: object, opens: bool) -> None:
    sidecar = json.loads(sidecar_path(beton).read_text())
    sidecar_path(beton).write_text(json.dumps({**sidecar, "checksums": value}))
    for check in (open_beton, verify):
        if opens:
            check(beton)
        else:
            with pytest.raises(UserError, match="checksum"):
                check(beton)


def test_a_deeply_nested_sidecar_is_refused(beton: Path) -> None:
    sidecar_path(beton).write_text("[" * 100_000)
    with pytest.raises(UserError, match="does not describe"):
        open_beton(beton)


# That it would find it again.


def test_crashes_hangs_and_exceptions_are_counted_and_their_inputs_kept(tmp_path: Path) -> None:
    shown: list[int] = []
    report = supervise(
        FaultyFuzzer,
        0,
        12,
        cpu_seconds=0.6,
        wall_seconds=2.0,
        save=tmp_path / "kept",
        progress=lambda report: shown.append(report.cases),
    )
    assert {finding.case: finding.kind for finding in report.findings} == FAULTS
    assert report.cases == 12 and report.results == {"image": 7, "exception": 1, "wrong": 1}
    what = {finding.case: finding.what for finding in report.findings}
    assert "SIGSEGV" in what[3] and "string_at" in what[3]
    assert "ValueError: of case five" in what[5] and what[9] == "it is nine"
    assert all(Path(finding.file).read_text() == str(finding.case) for finding in report.findings)
    assert shown == sorted(shown)


def outside(offset: int, write: bool) -> None:
    memory = GuardedMemory(100_000)
    view = memory.at_end((1000,), np.dtype(np.uint8))
    place = (view if offset >= 0 else memory.at_start(view.copy())).ctypes.data + offset
    if write:
        ctypes.memset(place, 0, 1)
    else:
        ctypes.string_at(place, 1)


@pytest.mark.parametrize(("offset", "write"), [(1000, False), (1000, True), (-1, False)])
def test_touching_the_guard_pages_crashes(offset: int, write: bool) -> None:
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        outside(offset, write)
        os._exit(9)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV


def test_writing_in_front_of_guarded_memory_is_noticed() -> None:
    memory = GuardedMemory(100_000)
    view = memory.at_end((1000,), np.dtype(np.uint8))
    view[:] = 1
    memory.check("the view")
    ctypes.memset(view.ctypes.data - 1, 0, 1)
    with pytest.raises(GuardError, match="in front of the view"):
        memory.check("the view")


def tiled() -> tuple[bytes, list[tuple[int, int, int]]]:
    """A JPEG of 8 × 8 tiles of 16 × 16 pixels, and the stretches of its tiles."""
    data = jpeg_mutations.encode(PHOTOGRAPH[:128, :128], "4:2:0", 1, "sequential")
    return data, jpeg_mutations.entropy_segments(data, jpeg_mutations.header_segments(data)[-1][2])


def test_the_second_opinion_tells_damage_within_the_tiles_read_from_damage_elsewhere(decoder: GuardedDecoder) -> None:
    opinion = second_opinion.SecondOpinion(decoder)
    data, tiles = tiled()
    # The central 38 pixels lie in rows and columns 2 to 5 of the tiles.
    sound = request(data, 128, 128)
    image = decoder.decode(sound)[1].copy()
    assert opinion.of(sound, image) == ""
    for number, inside in ((0, False), (63, False), (27, True), (45, True)):
        start, end, _ = tiles[number]
        damaged = request(data[:start] + data[start : end - 12] + data[end:], 128, 128)
        assert not second_opinion.is_clean(damaged)
        assert (opinion.of(damaged, image) == "") != inside
        problem, other = decoder.decode(damaged)
        assert problem == (BAD_JPEG if inside else 0)
        assert inside or np.array_equal(other, image)
    image[3, 3] += 1
    assert "differ" in opinion.of(sound, image)


def test_every_mutation_changes_something_and_a_case_is_a_function_of_its_number(tmp_path: Path) -> None:
    images = jpeg_mutations.seed_images()
    for name, (_, change) in jpeg_mutations.MUTATIONS.items():
        changed = 0
        for number in range(20):
            data = bytearray(images[number * 13 % len(images)].data)
            change(data, Random(number))
            changed += bytes(data) != images[number * 13 % len(images)].data
        assert changed >= 8, name
    jpegs.write_seeds(tmp_path)
    write_seeds(tmp_path)
    fuzzers = [betons_module.BetonFuzzer(3, tmp_path) for _ in range(2)]
    for number in range(300):
        fuzzers[0].case(number)
    files = [fuzzer.case(300)[1] for fuzzer in fuzzers]
    assert files[0] == files[1]
    a, b = (jpegs.JpegFuzzer(3, tmp_path).case(17) for _ in range(2))
    assert np.array_equal(a[0].data, b[0].data) and np.array_equal(a[0].parameters, b[0].parameters) and a[1:] == b[1:]


# A share of the real thing.


def test_damaged_files_end_in_images_or_clear_errors(tmp_path: Path, jpg_beton: Path) -> None:
    result = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "fuzz.run", "--jpegs", "3000", "--betons", "300"]
    command += ["--seed", "1", "--json", str(result), "--save", str(tmp_path / "bad"), "--beton", str(jpg_beton)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["findings"] == [] and not (tmp_path / "bad").exists()
    jpegs_row, betons_row = found["rows"]
    assert (jpegs_row["cases"], betons_row["cases"]) == (3000, 300)
    assert jpegs_row["images"] > 400 and betons_row["images"] > 20
    assert set(jpegs_row["errors"]) == {"header refused", "damaged JPEG", "level refused"}
    # Every check of a beton has been reached but for the rarest.
    assert len(set(betons_row["errors"]) & set(betons_module.ERRORS.values())) > 12
    assert set(jpegs_row["by_mutation"]) == {*jpeg_mutations.MUTATIONS, *jpegs.DAMAGED_PARTS}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--jpegs", "-1"], "must not be negative"),
        (["--json", "no/such/folder/f.json"], "does not exist"),
        (["--beton", "no.beton"], "does not exist"),
    ],
)
def test_options_are_checked(options: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--betons", "1", "--jpegs", "0", *options])
    with pytest.raises(UserError, match=words):
        run.main()
