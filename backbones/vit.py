"""ViT: a transformer over patches of the face, whose tokens are all laid side by side for the embedding.

Source: insightface, ``recognition/arcface_torch/backbones/vit.py``; the transformer is that of Dosovitskiy et al.,
"An Image is Worth 16x16 Words", arXiv 2010.11929, without a class token, drop path that of Huang et al., "Deep
Networks with Stochastic Depth", arXiv 1603.09382. Parameter names, order and shapes are insightface's, so its weights
load with ``strict=True``. It differs from it in these points: attention is computed in the type of the products
around it (there float32), with its softmax in float32 either way; autocast is off unless it is asked for;
``dropout`` acts before the last linear layer (there it is not an option); a mask token that nothing uses is not
trained.

Shapes: B batch, N patches, C numbers of a token, A attention heads, D embedding size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.base import FACE_SIZE, Backbone

_STD = 0.02  # of first weights


class PatchEmbed(nn.Module):
    """One token for each patch; what is left at the right and the bottom of an image is not seen."""

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, height, width) to (B, N, C), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every token looks at every token, in ``heads`` parts of its numbers."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, A, N, C / A) each
        x = F.scaled_dot_product_attention(q, k, v)  # (B, A, N, C / A)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Each token by itself: four times as wide, ReLU6, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        return self.fc2(F.relu6(self.fc1(x)))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """In training leave a branch out for some samples, and make it larger for the others, so that its mean stays.

    Args:
        rate: probability of leaving it out.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class Block(nn.Module):
    """Attention, then the MLP, each on normalised tokens and added to them; the sum keeps the tokens' own type."""

    def __init__(self, channels: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class VisionTransformer(Backbone):
    """Patches, blocks of attention, and a linear layer over all tokens at once.

    Args:
        channels: C.
        depth: blocks.
        num_features: D.
        dropout: probability of zeroing an input of the last linear layer, in training.
        amp_dtype: autocast type of the blocks' products; None for float32. Sums and norms keep float32.
        heads: A.
        patch_size: side of a patch in pixels.
        drop_path: probability of leaving out a branch of the last block, in training; it rises from 0 at the first.
        mask_ratio: share of the patches that no block sees, in training. After the blocks a trained token stands in
            their places. 0 for none.
        gradient_checkpointing: keep the blocks' inputs alone for backward.
        image_size: side of the images in pixels.

    Raises:
        ValueError: the image is smaller than a patch.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        num_features: int = 512,
        dropout: float = 0.0,
        amp_dtype: torch.dtype | None = None,
        *,
        heads: int = 8,
        patch_size: int = 9,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        gradient_checkpointing: bool = False,
        image_size: int = FACE_SIZE,
    ) -> None:
        super().__init__(amp_dtype, gradient_checkpointing, image_size)
        assert channels % heads == 0
        patches = (image_size // patch_size) ** 2
        if image_size < patch_size:
            raise ValueError(f"image_size must be at least one patch, {patch_size} pixels, got {image_size}")
        self.kept_patches = int(patches * (1 - mask_ratio))
        self.pos_embed = nn.Parameter(torch.empty(1, patches, channels))
        self.mask_token = nn.Parameter(torch.empty(1, 1, channels), requires_grad=self.kept_patches < patches)
        self.patch_embed = PatchEmbed(patch_size, channels)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(channels, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(channels)
        self.feature = nn.Sequential(
            nn.Linear(channels * patches, channels, bias=False),
            nn.BatchNorm1d(channels, eps=2e-5),
            nn.Linear(channels, num_features, bias=False),
            nn.BatchNorm1d(num_features, eps=2e-5),
        )
        self.dropout = nn.Dropout(dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        """Linear layers, places and the mask token from N(0, 0.02), biases 0; torch's defaults elsewhere."""
        nn.init.trunc_normal_(self.pos_embed, std=_STD)
        nn.init.normal_(self.mask_token, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def trunk(self, x: Tensor) -> Tensor:
        """Images (B, 3, height, width) to normalised tokens (B, N, C), float32 under autocast too."""
        x = self.patch_embed(x) + self.pos_embed  # (B, N, C)
        if not self.training or self.kept_patches == x.shape[1]:
            return self.norm(self._through_blocks(x))  # type: ignore[no-any-return]
        order_BN = torch.rand(x.shape[:2], device=x.device).argsort(1)  # for each sample, the patches to keep first
        x = _take(x, order_BN[:, : self.kept_patches])  # (B, kept, C)
        x = self.norm(self._through_blocks(x))
        hidden = self.mask_token.expand(len(x), order_BN.shape[1] - self.kept_patches, -1)
        return _take(torch.cat([x, hidden], 1), order_BN.argsort(1))  # (B, N, C), each in its own place

    def _through_blocks(self, x: Tensor) -> Tensor:
        is_checkpointing = self.is_checkpointing_now()
        for block in self.blocks:
            x = self.run_segment(block, x) if is_checkpointing else block(x)
        return x

    def project(self, x: Tensor) -> Tensor:
        """(B, N, C) to embeddings (B, D)."""
        narrow, narrow_norm, embed, embed_norm = self.feature
        x = narrow_norm(narrow(x.flatten(1)))  # (B, C)
        x = embed_norm(embed(self.dropout(x)))  # (B, D)
        return x


def _take(x: Tensor, places: Tensor) -> Tensor:
    """For each sample its tokens (B, N, C) at these places (B, n)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
