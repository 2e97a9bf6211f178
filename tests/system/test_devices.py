"""Which device a process takes."""

import pytest
import torch

from ffcv_train.system import distributed
from ffcv_train.system.distributed import process_group
from ffcv_train.system.errors import UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which this process sees one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed, "meet", lambda: (torch.distributed.HashStore(), 1, 2))
    for name in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def launch(gpus: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """The devices with which NCCL is asked for, as local rank 1 of 2."""
    asked = []
    gpus.setattr(torch.distributed, "init_process_group", lambda backend, **how: asked.append(str(how["device_id"])))
    gpus.setattr(torch.distributed, "destroy_process_group", lambda: None)
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**launched, **variables}.items():
        gpus.setenv(name, value)
    with process_group("cuda") as process:
        assert (process.rank, process.local_rank) == (1, 1)
    return asked


@pytest.mark.parametrize("visible", ["0", "3", "GPU-5ebe9f43"])
def test_a_task_that_sees_one_gpu_of_several_takes_it(gpus: pytest.MonkeyPatch, visible: str) -> None:
    assert launch(gpus, CUDA_VISIBLE_DEVICES=visible) == ["cuda:0"]


@pytest.mark.parametrize("visible", [{}, {"CUDA_VISIBLE_DEVICES": "0,1"}])
def test_more_processes_than_gpus_are_refused(gpus: pytest.MonkeyPatch, visible: dict[str, str]) -> None:
    with pytest.raises(UserError, match="this machine has 1 GPUs, but torchrun started local rank 1"):
        launch(gpus, **visible)


def test_one_gpu_given_to_two_processes_is_said(gpus: pytest.MonkeyPatch) -> None:
    def refuse(backend: str, **_: object) -> None:
        raise RuntimeError("NCCL error in: init.cpp\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 7")

    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0"}
    for name, value in launched.items():
        gpus.setenv(name, value)
    gpus.setattr(torch.distributed, "init_process_group", refuse)
    with pytest.raises(UserError, match="several processes have the same GPU"), process_group("cuda"):
        pass
