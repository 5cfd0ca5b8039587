"""The loss of a training step, and the penalties on the weights; `module.py` calls both.

A new loss is a class in `harness.config.loss` and a case in `_per_image`. Validation and test report the
cross entropy of the softmax, of multi-label images the binary one, whatever was trained (`harness.analysis`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.loss import BaseLoss, BinaryCrossEntropy, CrossEntropy, Focal, LossConfig
from harness.models.timm_parts import one_vs_rest


class TrainingLoss:
    """The configured loss, averaged over the images of a batch.

    Each image has a loss of its own, whatever else is in its batch: so ranks and accumulated batches together
    compute what one large batch would.
    """

    def __init__(
        self,
        config: LossConfig,
        label_smoothing: float = 0.0,
        weights_K: Tensor | None = None,
        *,
        counts_K: np.ndarray | None = None,
        is_multilabel: bool = False,
    ) -> None:
        """
        Args:
            label_smoothing: the share of each target that is spread evenly over all classes.
            weights_K: of the classes; None: all count equally. A mixed image has the mean of its classes'. Of
                multi-label images, what a yes counts for each label; a no counts 1.
            counts_K: the training images of each class, which `loss.logit_adjustment` needs.
            is_multilabel: each label has a sigmoid, and is smoothed towards 1/2 by itself.
        """
        self._config = config
        self._smoothing = label_smoothing
        self._weights_K = weights_K
        self._is_multilabel = is_multilabel
        self._adjustment_K = _logit_adjustment(config, counts_K)

    def __call__(self, logits_BK: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            labels: int64 (B,), or probabilities (B, K); of multi-label images, those of each label.
        """
        if self._is_multilabel:
            return self._of_labels(logits_BK.float(), labels.float())
        if self._adjustment_K is not None:
            logits_BK = logits_BK.float() + self._adjustment_K.to(logits_BK.device)
        if isinstance(self._config, CrossEntropy) and self._weights_K is None:
            return F.cross_entropy(logits_BK, labels, label_smoothing=self._smoothing)
        logits_BK = logits_BK.float()
        num_classes = logits_BK.shape[1]
        targets_BK = F.one_hot(labels, num_classes) if labels.ndim == 1 else labels
        targets_BK = targets_BK.to(logits_BK.dtype)
        smooth_BK = targets_BK * (1 - self._smoothing) + self._smoothing / num_classes
        losses_B = _per_image(self._config, logits_BK, smooth_BK)
        if self._weights_K is not None:
            losses_B = losses_B * (targets_BK @ self._weights_K.to(targets_BK))
        return losses_B.mean()

    def _of_labels(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """Return the mean loss of multi-label images: binary cross entropy, or focal (Lin et al., 2017).

        The focal factor is (1 - p)^gamma of what each answer should be: of yes for the part of the target
        that is yes, of no for the other.
        """
        config = self._config
        if isinstance(config, BinaryCrossEntropy) and config.target_threshold is not None:
            targets_BK = targets_BK.gt(config.target_threshold).float()
        targets_BK = targets_BK * (1 - self._smoothing) + self._smoothing / 2
        yes_BK, no_BK = -F.logsigmoid(logits_BK), -F.logsigmoid(-logits_BK)
        if isinstance(config, Focal):
            # Bounded below: at 0 a gamma below 1 has no finite gradient.
            yes_BK = yes_BK * (-logits_BK).sigmoid().clamp(min=1e-12) ** config.gamma
            no_BK = no_BK * logits_BK.sigmoid().clamp(min=1e-12) ** config.gamma
        if self._weights_K is not None:
            yes_BK = yes_BK * self._weights_K.to(yes_BK)
        losses_BK = targets_BK * yes_BK + (1 - targets_BK) * no_BK
        is_sum = isinstance(config, BinaryCrossEntropy) and config.sum_classes
        return losses_BK.sum(1).mean() if is_sum else losses_BK.mean()


def _per_image(config: LossConfig, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Return the loss of each image, (B,)."""
    if isinstance(config, BinaryCrossEntropy):
        losses_BK = one_vs_rest(logits_BK, targets_BK, config.target_threshold)
        return losses_BK.sum(1) if config.sum_classes else losses_BK.mean(1)
    log_p_BK = logits_BK.log_softmax(1)
    if isinstance(config, Focal):
        # 1 - p, bounded below: at 0 a gamma below 1 has no finite gradient.
        log_p_BK = log_p_BK * (-log_p_BK.expm1()).clamp(min=1e-12) ** config.gamma
    return -(targets_BK * log_p_BK).sum(1)


def _logit_adjustment(config: LossConfig, counts_K: np.ndarray | None) -> Tensor | None:
    """Return what is added to the logits, float32 (K,); None if nothing is.

    A class that label noise has left without training images counts as if it had one.

    Source: Menon et al., "Long-tail learning via logit adjustment" (2021), equation 10.
    """
    if not config.adjustment:
        return None
    assert counts_K is not None, "loss.logit_adjustment needs the sizes of the classes"
    shares_K = np.maximum(counts_K, 1) / counts_K.sum()
    return torch.from_numpy(config.adjustment * np.log(shares_K)).float()


def class_weights(config: LossConfig, labels: np.ndarray, num_classes: int) -> Tensor | None:
    """Return the weight of each class, (K,), by the labels of the training images; None if all count equally.

    A class without training images counts for nothing, as it never comes. Of multi-label images, a yes counts
    as often as there are more images without the label than with it (torch's `pos_weight`).

    Args:
        labels: int64 (N,); of multi-label images 0 and 1, (N, K).
    """
    if config.class_weights == "none":
        return None
    if labels.ndim == 2:
        positives_K = labels.sum(axis=0, dtype=np.float64)  # each label has some: the splits see to it
        return torch.from_numpy((len(labels) - positives_K) / positives_K).float()
    labels_N = labels
    counts_K = np.bincount(labels_N, minlength=num_classes)
    present = counts_K > 0
    weights_K = np.zeros(num_classes)
    weights_K[present] = len(labels_N) / (present.sum() * counts_K[present])
    return torch.from_numpy(weights_K).float()


def penalty(config: BaseLoss, parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """Return what `l1` and `l2` add to the loss, a scalar; None if they are 0.

    Args:
        parameters: of the network; those that train and have more than one dimension are penalised.
    """
    if config.l1 == config.l2 == 0:
        return None
    weights = [parameter for parameter in parameters if parameter.requires_grad and parameter.ndim > 1]
    magnitudes = [config.l1 * weight.abs().sum() for weight in weights if config.l1]
    squares = [config.l2 * weight.square().sum() for weight in weights if config.l2]
    return torch.stack([*magnitudes, *squares]).sum()
