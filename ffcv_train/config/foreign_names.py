"""Options by the names that FFCV, MaxSup's repository, timm, torchvision's references and DeiT give them.

A table for whoever brings a configuration or a command line along: what stands here for such a name, or why nothing
does. docs/migration.md says where meanings and defaults differ.
"""

from collections.abc import Collection

_SMOOTHING = "loss.name=ls with loss.alpha_start and loss.alpha_end, both the smoothing"
_SIDES = "resolution.min_res and resolution.max_res, and validation.resolution"
_FOLDERS = "data.train_dataset and data.val_dataset, with data.format=folder for folders of images"
_POLICY = (
    "augment.policy: rand_augment with augment.magnitude and augment.magnitude_std, auto_augment, augmix, "
    "trivial_augment, or three_augment"
)
_LAUNCH = "nothing: torchrun --nproc_per_node=N starts a process per GPU, and tells it so"
_EVALUATE = "the command ffcv-train eval --checkpoint FILE"
_EMA = "training.ema_decay, above 0"
_STEPS = "lr.step_length, with lr.lr_schedule_type=step"
_STEP_FACTOR = "lr.step_ratio, with lr.lr_schedule_type=step"
_NORMS = "training.norm_weight_decay, of norms and biases"
_ERASING = "nothing: augment.erase erases one box, by noise per pixel"
_BATCH_NORM = "model.sync_batchnorm=1"
_MEMORY = "nothing: batches are prepared ahead of the step, data.batches_ahead of them"
_NO_NOISE = "nothing: the rate has no noise and no cycles"

FOREIGN_NAMES = {
    # FFCV's ImageNet scripts
    "label_smoothing": _SMOOTHING,
    "bn_wd": _NORMS,
    "gpu": "nothing: training.device=cuda takes a GPU, CUDA_VISIBLE_DEVICES says which",
    "distributed": _LAUNCH,
    "world_size": _LAUNCH,
    "dist.address": "nothing: torchrun --master_addr",
    "dist.port": "nothing: torchrun --master_port",
    "eval_only": _EVALUATE,
    "log_level": "nothing: logging.interval says how often a loss is shown",
    "pretrained": "model.weights=torchvision:NAME, or a file",
    # MaxSup's Conv/ffcv: config.toml, and its command lines
    "experiment.name": "logging.run",
    "experiment_name": "logging.run",
    "fast_run": "nothing: training.epochs=1",
    "train_resolution": "resolution.min_res and resolution.max_res, both",
    "val_resolution": "validation.resolution",
    "step_size": _STEPS,
    "gamma": _STEP_FACTOR,
    "loss_type": "loss.name: ms is maxsup, lp is logit_penalty; ce, ls and ols are the same",
    "loss.weight": "nothing: lr.lr scales the whole loss",
    "begin_lambda": "loss.alpha_start",
    "end_lambda": "loss.alpha_end",
    "loss.epochs": "nothing: the schedule has training.epochs",
    "loss.alpha": "loss.hard_weight, and loss.soft_weight for the rest to 1",
    "loss.smoothing": "nothing: OLS starts from rows of label smoothing 0.1",
    "load_into_ram": "data.cache=1, with data.format=zip",
    "lmdb": "nothing: data.format=zip, or a .beton file",
    "prefetch": "data.batches_ahead",
    # torchvision's references/classification/train.py
    "data_path": _FOLDERS,
    "model": "model.arch",
    "workers": "data.num_workers",
    "j": "data.num_workers",
    "b": "training.batch_size, per device",
    "batch_size": "training.batch_size and validation.batch_size, per device",
    "opt": "training.optimizer: sgd, adamw, lamb, lion or muon; nesterov is training.nesterov=1",
    "wd": "training.weight_decay",
    "bias_weight_decay": _NORMS,
    "transformer_embedding_decay": "training.norm_weight_decay, of position embeddings and class tokens as well",
    "mixup_alpha": "augment.mixup",
    "cutmix_alpha": "augment.cutmix",
    "lr_scheduler": "lr.lr_schedule_type: steplr is step, cosineannealinglr is cosine",
    "lr_warmup_epochs": "lr.warmup_epochs",
    "lr_warmup_method": "nothing: lr.warmup_epochs is linear",
    "lr_warmup_decay": "lr.warmup_lr, the rate itself and not its share of lr.lr",
    "lr_step_size": _STEPS,
    "lr_gamma": _STEP_FACTOR,
    "lr_min": "lr.min_lr",
    "print_freq": "logging.interval",
    "output_dir": "logging.folder",
    "start_epoch": "nothing: training.resume goes on where the checkpoint ends",
    "cache_dataset": "nothing: ffcv-train write makes a .beton file once",
    "sync_bn": _BATCH_NORM,
    "test_only": _EVALUATE,
    "auto_augment": _POLICY,
    "ra_magnitude": "augment.magnitude, of 10",
    "augmix_severity": "augment.magnitude, with augment.policy=augmix",
    "random_erase": "augment.erase",
    "amp": "training.amp, with a value: bf16, fp16 or off",
    "dist_url": _LAUNCH,
    "model_ema": _EMA,
    "model_ema_steps": "nothing: every step averages, so training.ema_decay is its n-th root for steps of n",
    "model_ema_decay": _EMA,
    "use_deterministic_algorithms": "nothing: training.seed, on a CPU",
    "interpolation": "data.interpolation of training crops and validation.interpolation",
    "val_resize_size": "validation.crop_ratio, the side of the crop by this size",
    "val_crop_size": "validation.resolution",
    "train_crop_size": "resolution.min_res and resolution.max_res, both",
    "clip_grad_norm": "training.clip_grad",
    "ra_sampler": "augment.repeats, above 1",
    "ra_reps": "augment.repeats",
    "weights": "model.weights=torchvision:NAME, or a file",
    "backend": "nothing: images are decoded by TurboJPEG, and by Pillow where it cannot",
    "use_v2": "nothing: augmentation is this package's own",
    # timm's train.py
    "c": "--config-file FILE, with the names of this package",
    "config": "--config-file FILE, with the names of this package",
    "data": _FOLDERS,
    "data_dir": _FOLDERS,
    "dataset": "data.format, with data.train_dataset and data.val_dataset",
    "train_split": "data.train_dataset",
    "val_split": "data.val_dataset",
    "class_map": "data.classes, a file of the names in label order, for zips and folders",
    "initial_checkpoint": "model.weights=FILE",
    "pretrained_path": "model.weights=FILE",
    "no_resume_opt": "model.weights=FILE, which takes weights alone",
    "gp": "nothing: pooling belongs to model.arch",
    "img_size": _SIDES,
    "input_size": _SIDES,
    "crop_pct": "validation.crop_ratio",
    "vb": "validation.batch_size",
    "validation_batch_size": "validation.batch_size",
    "grad_accum_steps": "training.accumulate",
    "grad_checkpointing": "model.grad_checkpointing=1",
    "torchcompile": "model.compile=1",
    "torchscript": "nothing: model.compile=1",
    "amp_dtype": "training.amp: bfloat16 is bf16, float16 is fp16",
    "native_amp": "training.amp=fp16",
    "apex_amp": "training.amp=fp16",
    "opt_eps": "nothing: AdamW's epsilon is 1e-8",
    "opt_betas": "training.momentum, the first, and training.beta2",
    "clip_mode": "nothing: training.clip_grad bounds the norm",
    "layer_decay": "finetune.layer_decay, with model.weights",
    "sched": "lr.lr_schedule_type: cyclic, cosine or step",
    "lr_base": "lr.lr, with lr.reference_batch",
    "lr_base_size": "lr.reference_batch",
    "lr_base_scale": "nothing: lr.reference_batch scales lr.lr linearly",
    "lr_noise": _NO_NOISE,
    "lr_noise_pct": _NO_NOISE,
    "lr_noise_std": _NO_NOISE,
    "lr_cycle_mul": _NO_NOISE,
    "lr_cycle_decay": _NO_NOISE,
    "lr_cycle_limit": _NO_NOISE,
    "lr_k_decay": _NO_NOISE,
    "epoch_repeats": "nothing: training.epochs",
    "decay_milestones": "lr.step_epochs, with lr.lr_schedule_type=step",
    "decay_epochs": _STEPS,
    "decay_rate": _STEP_FACTOR,
    "dr": _STEP_FACTOR,
    "warmup_prefix": "lr.cosine_start=warmup; without it lr.cosine_start=zero",
    "cooldown_epochs": "nothing: training.epochs counts them, at lr.min_lr in timm",
    "patience_epochs": "nothing: no schedule waits for a plateau",
    "no_aug": "data.crop_scale=1,1 with data.flip=0",
    "scale": "data.crop_scale, two numbers separated by a comma",
    "ratio": "data.crop_ratio, two numbers separated by a comma",
    "hflip": "data.flip",
    "vflip": "nothing: images are flipped from left to right only, data.flip",
    "color_jitter": "augment.color_jitter, which augment.policy=three_augment alone has",
    "aa": _POLICY,
    "aug_repeats": "augment.repeats",
    "aug_splits": "nothing: augment.repeats takes several crops of an image",
    "jsd_loss": "nothing: loss.name has no such criterion",
    "bce_loss": "loss.name=bce",
    "bce_sum": "loss.bce_sum_classes=1",
    "bce_target_thresh": "loss.bce_threshold",
    "reprob": "augment.erase",
    "remode": _ERASING,
    "recount": _ERASING,
    "resplit": _ERASING,
    "cutmix_minmax": "nothing: augment.cutmix draws the share from a Beta distribution",
    "mixup_prob": "augment.mix_prob",
    "mixup_switch_prob": "augment.mix_switch",
    "mixup_mode": "augment.mix_mode: batch or pair",
    "mixup_off_epoch": "nothing: augment.mixup holds for the whole run",
    "smoothing": _SMOOTHING,
    "train_interpolation": "data.interpolation: bilinear or bicubic",
    "drop": "nothing: dropout belongs to model.arch; model.drop_path is stochastic depth",
    "drop_connect": "model.drop_path",
    "drop_block": "nothing: model.drop_path is stochastic depth",
    "bn_momentum": "nothing: BatchNorm is as model.arch has it",
    "bn_eps": "nothing: BatchNorm is as model.arch has it",
    "dist_bn": "nothing: running statistics are averaged over the devices at the end of an epoch",
    "split_bn": "nothing: all images go through the same BatchNorm",
    "model_ema_force_cpu": _EMA,
    "model_ema_warmup": _EMA,
    "log_interval": "logging.interval",
    "val_interval": "validation.every",
    "recovery_interval": "nothing: last.pt is written after every epoch and at SIGTERM",
    "checkpoint_hist": "nothing: a run keeps last.pt, previous.pt, best.pt and final.pt",
    "pin_mem": _MEMORY,
    "no_pin_mem": _MEMORY,
    "no_prefetcher": _MEMORY,
    "output": "logging.folder",
    "experiment": "logging.run",
    "eval_metric": "nothing: best.pt goes by top-1",
    "tta": "validation.lr_tta",
    "log_wandb": "logging.tracker=wandb",
    "local_rank": _LAUNCH,
    "kd_model_name": "distill.teacher_arch, with distill.teacher=FILE",
    "kd_temperature": "distill.temperature",
    "distill_loss_weight": "distill.weight",
    # DeiT's main.py
    "unscale_lr": "lr.reference_batch=0",
    "no_model_ema": "training.ema_decay=0",
    "repeated_aug": "augment.repeats=3",
    "no_repeated_aug": "augment.repeats=1",
    "threeaugment": "augment.policy=three_augment",
    "src": "data.crop_scale near 1, for crops of almost the whole image",
    "teacher_model": "distill.teacher_arch",
    "teacher_path": "distill.teacher",
    "distillation_type": "distill.type: none, soft or hard",
    "distillation_alpha": "distill.weight",
    "distillation_tau": "distill.temperature",
    "cosub": "nothing: there are no submodels",
    "finetune": "model.weights=FILE",
    "attn_only": "finetune.freeze, which names what is not trained",
    "data_set": "data.format, with data.train_dataset and data.val_dataset",
    "inat_category": "nothing: the data set names its classes",
    "eval": _EVALUATE,
    "eval_crop_ratio": "validation.crop_ratio",
    "dist_eval": "nothing: evaluation takes every sample exactly once on any number of GPUs",
    "train_mode": "nothing: a network trains in training mode",
    "no_train_mode": "nothing: a network trains in training mode",
}
"""A name without its dashes, in lower case, `-` as `_`, with its section where that tells it from another."""


def normalised(key: str) -> str:
    """`key` as the table has it: `--Clip-Grad` is `clip_grad`."""
    return key.lstrip("-").replace("-", "_").lower()


def meaning_here(key: str, own: Collection[str]) -> str:
    """What stands for another trainer's `key` in a schema with the keys `own`; "" where the table does not know it."""
    if "training.batch_size" not in own:  # another command's options, with which these have nothing in common
        return ""
    whole = normalised(key)
    parts = whole.split(".")
    names = (whole, ".".join(parts[-2:]), parts[-1])
    return next((FOREIGN_NAMES[name] for name in names if name in FOREIGN_NAMES), "")
