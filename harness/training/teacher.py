"""Knowledge distillation: finds the teacher that `distill.teacher` names; computes what it adds to a loss.

`train.py` calls `find_teacher` and `load_teacher`; the LightningModule (`module.py`) asks the `Teacher` about
each batch. A teacher is a run's checkpoint, an exported bundle, or a published network
(`harness.models.published`). The settings are in `harness.config.distill`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.config.distill import SoftTargets
from harness.config.schema import RunConfig
from harness.errors import ConfigError, HarnessError, first_few
from harness.models import ImageClassifier
from harness.models.convolutions import speed_up_convolutions
from harness.models.protocol import digest_of, named_tensors
from harness.models.published import is_published, load_published
from harness.training.checkpoints.trained_model import (
    FoundModel,
    about,
    find_bundle,
    find_run,
    load_model,
)

SETTING = "distill.teacher"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherFacts:
    """What is recorded of a teacher with the run that learns from it."""

    what: str  # "run … (name)", "bundle …", "published network …"
    digest: str = ""  # sha256 (hex) of its weights, its preprocessing and its classes
    run_id: str | None = None
    val_accuracy: float | None = None  # as recorded with it, on its own validation images
    data_digest: str | None = None  # of the training and validation images that it was trained with


class Teacher:
    """A trained network whose answers to the training images are learnt from; nothing of it trains.

    It sees each batch as the network that learns does, augmented and mixed, through its own preprocessing.
    """

    def __init__(
        self, classifier: ImageClassifier, columns: Sequence[int], config: SoftTargets, facts: TeacherFacts
    ) -> None:
        """
        Args:
            classifier: on the CPU.
            columns: the place of each of the run's classes among the teacher's.
            facts: what is known of it.
        """
        self.classifier = classifier.eval().requires_grad_(False)
        self.config, self.facts = config, facts
        self._columns_K = torch.tensor(columns)

    def to(self, device: torch.device) -> None:
        """Make ready for batches on a device: fast convolutions, the memory format of training."""
        speed_up_convolutions(self.classifier.network)
        self.classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._columns_K = self._columns_K.to(device)

    def loss(self, own_loss: Tensor, logits_BK: Tensor, images_BCHW: Tensor) -> Tensor:
        """Return (1 - weight) × the run's own loss + weight × T² × KL(teacher ‖ network), a scalar.

        Args:
            own_loss: mean over the batch, a scalar.
            logits_BK: of the network that learns.
            images_BCHW: uint8, or float in [0, 1]: those that it has answered to.
        """
        weight = self.config.weight
        return (1 - weight) * own_loss + weight * soften(
            logits_BK, self.logits(images_BCHW), self.config.temperature
        )

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Return the teacher's logits for the run's classes, in the run's order, (B, K)."""
        return self.classifier(images_BCHW)[:, self._columns_K]

    def describe(self) -> str:
        """Return a line about the teacher."""
        accuracy = self.facts.val_accuracy
        scored = "" if accuracy is None else f", val/accuracy {accuracy:.4f} on its own validation images"
        return f"{self.facts.what}, weights {self.facts.digest[:12]}{scored}"


def soften(logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float) -> Tensor:
    """Return T² × the mean over the batch of KL(teacher ‖ network) at temperature T, a scalar.

    T² makes the size of the gradients independent of T (Hinton et al., 2015, section 2.1).
    """
    own_BK = F.log_softmax(logits_BK.float() / temperature, dim=1)
    teachers_BK = F.log_softmax(teacher_logits_BK.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(own_BK, teachers_BK, reduction="batchmean", log_target=True)


# ── finding and loading it ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Published:
    """The name of a published network that is a teacher."""

    name: str


def find_teacher(config: RunConfig) -> FoundModel | Published | None:
    """Find out what `distill.teacher` means: a published network, a bundle's folder, or a run; None: nothing.

    Raises:
        HarnessError: there is no such teacher.
    """
    if not isinstance(config.distill, SoftTargets):
        return None
    reference = config.distill.teacher
    if is_published(reference):
        return Published(reference)
    if bundle := find_bundle(reference):
        return bundle
    if "/" in reference:
        raise ConfigError(
            f"distill.teacher={reference}: there is no bundle in this folder, name one that `harness export` "
            "has written"
        )
    return find_run(SETTING, reference, config.tracking)


def load_teacher(
    found: FoundModel | Published | None, config: RunConfig, class_names: Sequence[str]
) -> Teacher | None:
    """Return the run's teacher, on the CPU; None if it has none. No random number of the run's is drawn.

    Args:
        found: see `find_teacher`. Where several ranks train together, rank 0 finds it for all of them.
        class_names: of the run's data; empty for all of the teacher's, in its order.

    Raises:
        ConfigError: the teacher does not know all of the run's classes.
        HarnessError: it cannot be loaded.
    """
    if found is None:
        return None
    assert isinstance(config.distill, SoftTargets)
    reference = config.distill.teacher
    try:
        with torch.random.fork_rng(devices=[]):
            classifier, all_names, facts = _load(found)
    except HarnessError as error:
        raise about(SETTING, reference, error) from error
    columns = _columns(reference, all_names, class_names or all_names[0])
    parts = [*named_tensors(classifier.network), *named_tensors(classifier.preprocess)]
    identity = f"{digest_of(parts)} {classifier.preprocess.extra_repr()} {all_names[0]}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return Teacher(classifier, columns, config.distill, replace(facts, digest=digest))


def _load(found: FoundModel | Published) -> tuple[ImageClassifier, list[tuple[str, ...]], TeacherFacts]:
    """Return the teacher's network, its classes under each name that they have, and what is known of it."""
    if isinstance(found, Published):
        return *load_published(found.name), TeacherFacts(f"published network {found.name}")
    model = load_model(found)
    facts = TeacherFacts(
        found.words, run_id=model.run_id, val_accuracy=model.val_accuracy, data_digest=model.data_digest
    )
    return model.classifier, [model.class_names], facts


def _columns(reference: str, all_names: list[tuple[str, ...]], class_names: Sequence[str]) -> list[int]:
    """Return the place of each of the run's classes among the teacher's.

    Raises:
        ConfigError: the teacher does not know one of them.
    """
    missing: list[str] = []
    for names_of_all in all_names:
        places = {name: place for place, name in enumerate(names_of_all)}
        missing = missing or [name for name in class_names if name not in places]
        if all(name in places for name in class_names):
            return [places[name] for name in class_names]
    raise ConfigError(
        f"distill.teacher={reference} does not know {len(missing)} of the {len(class_names)} classes "
        f"({first_few(missing, 4)}); it knows {first_few(all_names[0], 4)}: name a teacher of these classes"
    )


# ── what is recorded of it ───────────────────────────────────────────────────────────


def describe_data(facts: TeacherFacts, data_digest: str) -> str:
    """Return whether a teacher was trained on the run's own training images, in words; warn where not.

    Args:
        data_digest: of the run's training and validation images.
    """
    if facts.data_digest == data_digest:
        return "the same training and validation images"
    known = "unknown images" if facts.data_digest is None else "other images, or another split of them"
    log.warning(
        "the teacher was trained with %s: if images of this run's validation or test split were among them, "
        "its scores are too high",
        known,
    )
    return known
