"""From `model.arch` to a network."""

import contextlib
import copy
import difflib
import warnings
from collections.abc import Collection
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from ffcv_train.config.schema import ModelConfig
from ffcv_train.models.blurpool import apply_blurpool
from ffcv_train.models.cifar_deit import CIFAR_TRANSFORMERS
from ffcv_train.models.cifar_resnet import CIFAR_MODELS
from ffcv_train.models.inspect.trace import evaluation_mode
from ffcv_train.models.weights import find_prefix
from ffcv_train.system.errors import UserError

# Built without their auxiliary heads, so that they return logits in training too, and with the change from ImageNet's
# normalisation to the one that torchvision's published weights of these two were trained with.
_TORCHVISION_OPTIONS = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}


def create_model(config: ModelConfig | str, num_classes: int) -> nn.Module:
    """The network `config.arch` with `num_classes` outputs and its library's random initialisation, on the CPU.

    A text in place of a `ModelConfig` is its `arch`.

    Names are looked up among our CIFAR networks, torchvision's classifiers and timm's models in this order: a name
    that two of them have, such as resnet50, is torchvision's, unless a prefix decides (`timm/resnet50`,
    `torchvision/resnet50`). Nothing is ever downloaded. With `config.use_blurpool` strided convolutions are blurred
    (see `apply_blurpool`). `config.weights` is not read, that is `load_weights`' part: a checkpoint's own
    configuration may name a file that is long gone. Raises `UserError` for an unknown name, or for a network that
    BlurPool would leave as it is.

    >>> model = create_model("cifar_resnet20", num_classes=10)
    """
    if isinstance(config, str):
        config = ModelConfig(arch=config)
    if num_classes < 1:
        raise UserError(f"a classifier needs at least one class, not {num_classes}; set model.num_classes")
    library, name = find_arch(config.arch)
    try:
        model = _create(library, name, num_classes, config.drop_path)
    except TypeError:
        if config.drop_path < 0:
            raise
        if config.drop_path > 0:
            raise UserError(
                f"model.drop_path={config.drop_path:g}: {config.arch} has no stochastic depth; leave it at -1"
            ) from None
        model = _create(library, name, num_classes, -1.0)
    if config.use_blurpool and not apply_blurpool(model):
        raise UserError(
            f"model.use_blurpool=1 changes nothing in {config.arch}, which has no strided convolution of 16 channels "
            "or more; set it to 0"
        )
    return model


def _create(library: str, name: str, num_classes: int, drop_path: float) -> nn.Module:
    """The network; a negative `drop_path` leaves its own. `TypeError` where it does not know what that is."""
    rate: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path >= 0 else {}
    if library == "cifar":
        return {**CIFAR_MODELS, **CIFAR_TRANSFORMERS}[name](num_classes, **rate)
    if library == "torchvision":
        options: dict[str, Any] = _TORCHVISION_OPTIONS.get(name, {})
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
        if drop_path >= 0:
            _set_stochastic_depth(model, drop_path)
        return model
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's notes on renamed models do not concern the user of a run
        # Transformers with position embeddings take images of other sides when told to; other networks do not know it.
        with contextlib.suppress(TypeError):
            return timm.create_model(name, num_classes=num_classes, dynamic_img_size=True, **rate)
        return timm.create_model(name, num_classes=num_classes, **rate)


def _set_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Scale the rates of a torchvision network to `rate` in the last block; `TypeError` where it has none.

    Its builders take the rate under one name, but some (Swin's, MaxViT's) set it themselves and refuse another.
    """
    blocks = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    highest = max((block.p for block in blocks), default=0.0)
    if not highest:
        raise TypeError
    for block in blocks:
        block.p *= rate / highest


def find_arch(arch: str) -> tuple[str, str]:
    """(library, name) of `arch`: library is "cifar", "torchvision" or "timm". Raises `UserError` if none has it."""
    library, _, name = arch.rpartition("/")
    if library in ("", "cifar") and (name in CIFAR_MODELS or name in CIFAR_TRANSFORMERS):
        return "cifar", name
    if library in ("", "torchvision") and name in _torchvision_names():
        return "torchvision", name
    # timm, and what comes with it, takes half a second to import: not for the others.
    import timm

    if library in ("", "timm") and timm.is_model(name):
        return "timm", name
    known = [*CIFAR_MODELS, *CIFAR_TRANSFORMERS, *_torchvision_names(), *timm.list_models()]
    near = list(dict.fromkeys(difflib.get_close_matches(name, known, n=3)))
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "timm.list_models() and torchvision's documentation list them"
    )
    raise UserError(f"model.arch={arch} is no classifier of torchvision, timm or ours; {hint}")


def published_name(config: ModelConfig) -> str:
    """The name of timm's weights that `config.arch` is, resnet50.a1_in1k say, where `config.weights` names none; or "".

    Raises `UserError` for an unknown architecture.
    """
    library, name = find_arch(config.arch)
    return name if library == "timm" and "." in name and not config.weights else ""


def propose_arch(stated: str, keys: Collection[str]) -> str:
    """The name here of the architecture that a file of weights under `keys` states; "" where it is none here.

    A name that torchvision and timm have, such as resnet50, is that one's whose keys the file has, torchvision's first.
    """
    known = []
    for name in dict.fromkeys((stated, f"timm/{stated.rpartition('/')[2]}")):
        with contextlib.suppress(UserError):
            find_arch(name)
            known.append(name)
    for name in known if len(known) > 1 else ():
        with torch.device("meta"):
            own = create_model(name, 1000).state_dict().keys()
        prefix = find_prefix(keys, own)
        if {f"{prefix}{key}" for key in own} <= {*keys}:
            return name
    return known[0] if known else ""


def check_resolution(model: nn.Module, resolution: int, arch: str = "") -> int:
    """The number of classes of `model`; `UserError` where it does not turn [1, 3, resolution, resolution] into logits.

    Runs on a copy without storage (meta device) in evaluation mode, a tenth of a second, and leaves `model` as it
    is. A model that cannot run there, or refuses, is asked once more with real numbers.
    """
    name = arch or type(model).__name__
    try:
        output = _forward(_without_storage(model).eval(), resolution)
    except Exception:
        try:
            with evaluation_mode(model):
                output = _forward(model, resolution)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"{name} does not take images of {resolution} x {resolution} pixels ({reason}); "
                "change resolution.min_res, resolution.max_res or validation.resolution, or the architecture"
            ) from None
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 1:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(f"{name} is no image classifier: it returns {shape} for one image; choose another model.arch")
    return output.shape[1]


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _without_storage(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers lie on the meta device; nothing is copied on the way."""
    memo: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _forward(model: nn.Module, resolution: int) -> object:
    like = next(model.parameters())
    with torch.no_grad():
        return model(torch.zeros(1, 3, resolution, resolution, device=like.device, dtype=like.dtype))
