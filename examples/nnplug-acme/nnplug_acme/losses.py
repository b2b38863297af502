"""B batch, C classes or regions, * voxels."""

from nnplug import LossContext, loss_traits
from torch import nn


@loss_traits(target_format="one_hot", supports_ignore_label=True, supports_regions=True)
class SoftJaccard(nn.Module):
    """1 - intersection / union of probabilities and target, mean over samples and classes; 0 to 1."""

    def __init__(self, context: LossContext, smooth=1.0):
        super().__init__()
        self.context, self.smooth = context, smooth

    def forward(self, output, target):
        """Logits and target (B, C, *); with an ignore label the target has one more channel that marks its voxels."""
        probabilities = (output.sigmoid() if self.context.has_regions else output.softmax(1)).flatten(2)
        target = target.flatten(2)
        if self.context.ignore_label is not None:
            target, counted = target[:, :-1], 1 - target[:, -1:]
            probabilities, target = probabilities * counted, target * counted
        intersection = (probabilities * target).sum(2)
        union = (probabilities + target).sum(2) - intersection
        return 1 - ((intersection + self.smooth) / (union + self.smooth)).mean()
