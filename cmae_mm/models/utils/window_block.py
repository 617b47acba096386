"""Transformer blocks over windows, with relative positions."""
from mmpretrain.models.backbones.vit_sam import (
    TransformerEncoderLayer,
    window_partition,
    window_unpartition,
)
from torch import Tensor


class WindowBlock(TransformerEncoderLayer):
    """``ViTSAM``'s block, which drops paths of the attention as well.

    Attention within windows, or over the whole map where ``window_size`` is
    0, and decomposed relative positions, which are learnt, start at zero and
    are resampled to maps of another size. All else, the arguments too, is
    mmpretrain's; there a path of the MLP alone is dropped. Here both are, each
    of an image as a whole, as in ViTDet (arXiv 2203.16527).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Maps of tokens, (N, H, W, D), of any height and width.

        Returns:
            Tensor: Of the same shape.
        """
        y = self.ln1(x)
        if self.window_size > 0:
            y, padded = window_partition(y, self.window_size)
            y = self.attn(y)
            y = window_unpartition(y, self.window_size, padded, x.shape[1:3])
        else:
            y = self.attn(y)
        x = x + self.ffn.dropout_layer(y)
        return self.ffn(self.ln2(x), identity=x)
