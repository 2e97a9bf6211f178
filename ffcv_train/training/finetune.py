"""What fine-tuning does apart: which parameters are frozen, and at which share of the rate others learn."""

from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ffcv_train.config.schema import FinetuneConfig
from ffcv_train.models.inspect.blocks import blocks
from ffcv_train.models.weights import head_names
from ffcv_train.system.errors import UserError


def freeze(model: nn.Module, config: FinetuneConfig) -> list[nn.Module]:
    """Freeze what `config` names; returns the BatchNorms that must stay in evaluation mode, for their statistics.

    `config.freeze` names modules or parameters, `*` is a wildcard, and a module's name stands for all in it;
    `config.freeze_up_to` freezes what is registered before the end of the module of that name, and with "body" all
    but the head. A frozen parameter takes no gradient. Raises `UserError` where a name is nobody's.
    """
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    names = [name for name in [*modules, *parameters] if name]
    frozen: set[str] = set()
    for pattern in config.freeze:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise UserError(f"finetune.freeze={pattern} names nothing in the network; {_parts(model)}")
        frozen |= matched
    if config.freeze_up_to == "body":
        head = head_names(model)
        frozen |= {name for name in names if not _within(name, head) and not any(_within(h, {name}) for h in head)}
    elif config.freeze_up_to:
        frozen |= _up_to(model, config.freeze_up_to)
    for name, parameter in parameters.items():
        if _within(name, frozen):
            parameter.requires_grad_(False)
    return [module for name, module in modules.items() if isinstance(module, _BatchNorm) and _within(name, frozen)]


def lr_scales(model: nn.Module, config: FinetuneConfig) -> dict[str, float]:
    """The share of the rate at which each parameter of `model` learns, by name; without options an empty dictionary.

    The head's layers take `config.head_lr`. Others take `config.layer_decay` to the power of how many layers they lie
    below the head, as BEiT (arXiv:2106.08254): the layers are what timm's networks state, else the blocks of
    torchvision's (see `_layers`).
    """
    if config.head_lr == 1.0 and config.layer_decay == 1.0:
        return {}
    head, layers = head_names(model), _layers(model)
    top = max(layers.values())
    return {
        name: config.head_lr if _within(name, head) else config.layer_decay ** (top - layers[name]) for name in layers
    }


def check(config: FinetuneConfig, weights: str) -> None:
    """Raise `UserError` where random weights would be frozen."""
    if (config.freeze or config.freeze_up_to) and not weights:
        raise UserError("finetune.freeze and finetune.freeze_up_to would keep random weights; set model.weights too")


def _within(name: str, ancestors: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in ancestors for length in range(1, len(parts) + 1))


def _up_to(model: nn.Module, stage: str) -> set[str]:
    """The names of all modules and parameters that are registered before the end of module `stage`."""
    names = dict(model.named_modules())
    if stage not in names:
        raise UserError(f"finetune.freeze_up_to={stage} is no stage of the network; {_parts(model)}")
    found: set[str] = set()
    path = stage.split(".")
    for depth in range(len(path)):
        prefix = ".".join(path[:depth])
        module = names[prefix]
        found |= {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
        for child, _ in module.named_children():
            if child == path[depth]:
                break
            found.add(f"{prefix}.{child}".lstrip("."))
    return found | {stage}


def _layers(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter, 0 the stem's, the highest the head's.

    From timm's networks as they state it. In others each entry of a sequence of modules is a layer, and what stands
    between and after them belongs to the one before it.
    """
    names = [name for name, _ in model.named_parameters()]
    matcher = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        stated = group_parameters(model, matcher(coarse=False), reverse=True)
        return {name: int(stated.get(name, max(stated.values()))) for name in names}
    of_sequences, head = set(blocks(model)), head_names(model)
    keys, key = [], ""
    for name in names:
        block = next((block for block in of_sequences if _within(name, {block})), "")
        key = "head" if _within(name, head) else block or key
        keys.append(key)
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return {name: order[key] for name, key in zip(names, keys, strict=True)}


def _parts(model: nn.Module) -> str:
    return f"its parts are {', '.join(name for name, _ in model.named_children())}"
