"""A pre-norm Vision Transformer whose blocks take either MLP: with GELU it is ViT, with GRKAN it is KAT.

ViT is Dosovitskiy et al.'s (arXiv 2010.11929), KAT Yang & Wang's (arXiv 2409.10594). Modules and parameters have the
names and shapes of timm's vit_*_patch16_224, so that its state dicts load, and with them KAT's and FlashKAT's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .modules import GRKAN, LayerNorm, reset_by

# The published models, of 12 blocks on patches of 16 x 16: VisionTransformer(**SIZES["tiny"], mlp="grkan") is KAT-T.
SIZES = {
    "tiny": {"width": 192, "heads": 3},
    "small": {"width": 384, "heads": 6},
    "base": {"width": 768, "heads": 12},
}


class VisionTransformer(nn.Module):
    """Images [B, channels, image_size, image_size] → logits [B, classes].

    An image is cut into (image_size / patch_size)² patches. They and a class token, with learned positions, pass
    `depth` blocks x + attention(norm(x)), x + MLP(norm(x)); the head reads the class token. Images are float32, or of
    the dtype that the model was cast to; under autocast the residual stream stays float32.

    mlp: "mlp" (linear, GELU, linear) or "grkan" (rational, linear, rational, linear; see GRKAN), each of
    int(width * mlp_ratio) hidden features. drop: dropout inside the MLP and after the attention's projection.
    drop_path: stochastic depth (Huang et al., arXiv 1603.09382), rising linearly from 0 in the first block to this in
    the last. norm: "torch" is PyTorch's LayerNorm everywhere; "fused", for "grkan" alone and its default, computes the
    block's second sum, norm and first rational function in one pass; "ours" does so and has our kernels for the other
    norms too, in either MLP's blocks. Parameters and their names are the same in all three. grkan: for "grkan" only,
    any keyword of GRKAN's, such as groups, shared, act_init or backward.

    Linear layers start normal, std 0.02, with biases of 0; those of GRKAN start as GRKAN has them.
    `reset_parameters` starts all anew, for models that were built on the meta device.

    Raises ValueError where patch_size does not divide image_size, heads do not divide width, groups do not divide width
    or the hidden features, for unknown names, and for images of another shape; TypeError for options of the other MLP.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        channels: int = 3,
        classes: int = 1000,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp: str = "mlp",
        mlp_ratio: float = 4,
        drop: float = 0.0,
        drop_path: float = 0.0,
        norm: str | None = None,
        **grkan,
    ):
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise ValueError(f"image_size must be a positive multiple of patch_size: {image_size} and {patch_size}")
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"width must be a positive multiple of heads: width {width}, {heads} heads")
        if mlp not in MLPS:
            raise ValueError(f"mlp must be one of {', '.join(map(repr, MLPS))}, not {mlp!r}")
        norm = norm or ("fused" if mlp == "grkan" else "torch")
        if norm not in NORMS or (norm == "fused" and mlp != "grkan"):
            raise ValueError(f"norm must be 'torch', 'ours', or, with mlp='grkan', 'fused', not {norm!r}")
        self.image_shape = (channels, image_size, image_size)
        patches = (image_size // patch_size) ** 2
        hidden = int(width * mlp_ratio)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, width))
        self._reset_tokens()
        self.patch_embed = PatchEmbedding(patch_size, channels, width)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp, hidden, drop, rate, norm, **grkan) for rate in rates))
        self.norm = NORMS[norm](width, eps=1e-6)
        self.head = _linear(width, classes)

    def _reset_tokens(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)

    def reset_parameters(self) -> None:
        """Draw all parameters anew; reads none."""
        self._reset_tokens()
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be [B, {', '.join(map(str, self.image_shape))}], not {list(images.shape)}")
        x = self.patch_embed(images)  # [B, N, width]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed  # [B, 1 + N, width]
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    reset_by(layer, _draw)
    layer.reset_parameters()
    return layer


def _draw(layer: nn.Linear) -> None:
    # Not trunc_normal_, which reads what it drew; timm truncates at 2, a hundred times the deviation.
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)


class PatchEmbedding(nn.Module):
    """Images [B, channels, H, W] → patches [B, N, width], row by row: one linear map, written as a convolution."""

    def __init__(self, patch_size: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # [B, width, H/p, W/p] → [B, N, width]


class Block(nn.Module):
    """[B, N, width] → [B, N, width]: attention, then an MLP of MLPS, each normed before and added after."""

    def __init__(
        self, width: int, heads: int, mlp: str, hidden: int, drop: float, drop_path: float, norm: str, **options
    ):
        super().__init__()
        self.fused, self.one_pass = norm != "torch", mlp == "grkan"
        self.norm1 = NORMS[norm](width, eps=1e-6)
        self.attn = Attention(width, heads, drop)
        self.norm2 = NORMS[norm](width, eps=1e-6)
        self.mlp = MLPS[mlp](width, hidden, drop=drop, **options)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.drop_path(self.attn(self.norm1(x)))
        if not self.fused:
            x = x + branch
            y = self.mlp(self.norm2(x))
        elif self.one_pass:
            y, x = self.mlp(x, branch, self.norm2)
        else:
            y, x = self.norm2(x, branch)
            y = self.mlp(y)
        return x + self.drop_path(y)


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, width] → [B, N, width]; qkv is one linear layer with a bias."""

    def __init__(self, width: int, heads: int, drop: float = 0.0):
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, width/heads]
        x = functional.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).reshape(batch, tokens, width)
        return self.drop(self.proj(x))


class MLP(nn.Module):
    """Linear, GELU, dropout, linear, dropout: [..., width] → [..., hidden] → [..., width]."""

    def __init__(self, width: int, hidden: int, *, drop: float = 0.0):
        super().__init__()
        self.fc1 = _linear(width, hidden)
        self.fc2 = _linear(hidden, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(x)))))


MLPS = {"mlp": MLP, "grkan": GRKAN}
NORMS = {"torch": nn.LayerNorm, "fused": nn.LayerNorm, "ours": LayerNorm}


class DropPath(nn.Dropout):
    """Stochastic depth: in training, zeroes a sample's whole branch with probability p, and scales by 1 / (1 - p)."""

    def forward(self, branch: Tensor) -> Tensor:  # [B, N, width]
        if not self.training or self.p == 0:
            return branch
        return branch * super().forward(branch.new_ones(len(branch), 1, 1))
