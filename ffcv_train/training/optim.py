"""Parameter groups and optimizers."""

from collections.abc import Mapping, Set
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ffcv_train.config.schema import TrainingConfig
from ffcv_train.models.weights import head_names
from ffcv_train.system.errors import UserError

_ADAM_BETA1 = 0.9  # where training.momentum is Muon's own
# What torchvision's transformers, which state nothing, have of what timm's exempt.
_EXEMPT = ("*class_token", "*pos_embedding", "*relative_position_bias_table", "*layer_scale")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    norm_weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
    apart: Set[str] = frozenset(),
) -> list[dict[str, Any]]:
    """The trainable parameters of `model`, split by what decays them and by their share of the rate.

    Parameters of two and more dimensions (kernels, matrices) take `weight_decay`; those of fewer (norms, biases)
    and those that the model names in `no_weight_decay()` (`*` is a wildcard), as timm's transformers do for position
    embeddings and class tokens, take `norm_weight_decay`; so do these of models that name nothing. A parameter that
    several modules share stands once. `model` bears no wrapper, so that its own names are seen. `lr_scales` are by
    name, 1 where one is missing; a group states its own as "lr_scale", as in timm. Parameters of modules named in
    `apart` are in groups of their own, with "use_fallback".
    """
    scales = lr_scales or {}
    stated: Any = getattr(model, "no_weight_decay", lambda: _EXEMPT)
    exempt = list(stated())
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and not any(fnmatchcase(name, pattern) for pattern in exempt)
            own = name.rpartition(".")[0] in apart
            groups.setdefault((scales.get(name, 1.0), decays, own), []).append(parameter)
    # Kernels before norms: the order in which an optimizer's state is written.
    return [
        {
            "params": members,
            "weight_decay": weight_decay if decays else norm_weight_decay,
            "lr_scale": scale,
            **({"use_fallback": own or not decays} if apart else {}),
        }
        for (scale, decays, own), members in sorted(groups.items(), key=lambda g: (g[0][0], not g[0][1], g[0][2]))
    ]


def create_optimizer(
    model: nn.Module,
    config: TrainingConfig,
    device: torch.device | str,
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `config.optimizer` over `parameter_groups`: PyTorch's SGD and AdamW, timm's LAMB, Lion and Muon.

    The first two are fused where `device` is a GPU, multi-tensor elsewhere. LAMB (arXiv:1904.00962) bounds the norm of
    all gradients by 1 itself, as timm's recipes have it. Muon (Keller Jordan's, with updates of AdamW's size as in
    arXiv:2502.16982) orthogonalises the updates of kernels and matrices; the head and whatever does not decay take
    AdamW's, at the same rate.
    The rate is 0 until the trainer sets it, which it does at every step. Raises `UserError` on values that the
    optimizer refuses.
    """
    apart = head_names(model) if config.optimizer == "muon" else frozenset()
    groups = parameter_groups(model, config.weight_decay, config.norm_weight_decay, lr_scales, apart)
    if not groups:
        raise UserError("the model has no trainable parameter; nothing can be trained; look at finetune.freeze")
    on_gpu = torch.device(device).type == "cuda"
    speed: dict[str, Any] = {"fused": True} if on_gpu else {"foreach": True}
    try:
        if config.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=(config.momentum, config.beta2), **speed)
        if config.optimizer in ("lamb", "lion", "muon"):
            return _of_timm(groups, config)
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, **speed)
    except ValueError as error:
        raise UserError(
            f"training.optimizer={config.optimizer} refuses training.momentum={config.momentum:g}, "
            f"beta2={config.beta2:g}, nesterov={int(config.nesterov)}: {error}"
        ) from None
    fill_momentum(optimizer)
    return optimizer


def _of_timm(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    # Half a second to import: not for the others.
    import timm.optim

    if not 0 <= config.momentum < 1 or not 0 <= config.beta2 < 1:  # which not all of them check
        raise ValueError("both must be at least 0 and below 1")
    betas = (config.momentum, config.beta2)
    if config.optimizer == "lamb":
        return timm.optim.Lamb(groups, lr=0.0, betas=betas)
    if config.optimizer == "lion":
        return timm.optim.Lion(groups, lr=0.0, betas=betas)
    fallback = (_ADAM_BETA1, config.beta2)
    return timm.optim.Muon(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, betas=fallback)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what an optimizer has gathered. How it computes is its own: options are the run's, kernels the device's."""
    # Before it is loaded: where counters of steps lie depends on it.
    groups = [
        {**own, **{key: saved[key] for key in ("params", "lr", "step") if key in saved}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    fill_momentum(optimizer)


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD the buffers of momentum that it lacks, as zeros: the first step makes the same of them.

    A first step that the fp16 scaler has skipped would leave those that PyTorch makes uninitialised.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
