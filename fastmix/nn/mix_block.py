"""The Mix Block of AutoMix: a mask for a pair of images out of one layer's features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix import _settings, ops
from fastmix.reference.upsample import upsample

CONVENTIONS = ("released", "transposed", "paper")
LAM_EMBEDS = ("qkv", "v", "none")
MODES = ("nearest", "bilinear", "bicubic")


class Projection(NamedTuple):
    """What a `MixBlock` needs of a batch of features, for any number of draws of partners and lam.

    Attributes:
        pixels: (N, h*w, d), the common projection of queries and keys without bias.
        rows: (K, N, h*w) accumulation dtype, K = 2 or 3: the value, the key bias and, with `lam_embed="qkv"`,
            the key bias per unit of lam; each without partner gather.
        size: (h, w).
    """

    pixels: Tensor
    rows: Tensor
    size: tuple[int, int]


class MixBlock(nn.Module):
    r"""Cross attention between two images' features that gives the mask to mix them by.

    From AutoMix (ECCV 2022), Eq. 4-6.

    With `z` (N, C, h, w), partner `j = index[n]`, one 1x1 projection W (bias b) for queries and keys, one
    value projection w (bias c), and a constant channel lam (1 - lam) appended to the own (partner's)
    features, the attention

        P[n, p, s] = softmax_s( (W z_n + b)[p] . (W z_j + b)[s] / sqrt(d) )

    gives a logit for each position. Since softmax ignores what is constant along s, the bias and the lam
    channel of the keys cancel and those of the queries become a bias of each key, so one projection `p = W z`
    of the features alone serves queries, keys and every draw of (index, lam):

        P[n, p, s] = softmax_s( p_n[p] . p_j[s] / sqrt(d) + key_bias[n, s] )
        key_bias[n, s] = (b + lam * W_lam) . p_j[s] / sqrt(d)

    evaluated by `fastmix.ops.pair_attention`, which never stores P. The projections of `project` cost O(N h w
    C d).

    `convention` chooses what the mask is made of; the result is always the logit of the own image's mask:

    "released"    `-(P v_j + c + (1 - lam) w_lam)`: rows of P, value of the partner, negated since the
                  released code computes the partner's mask; upsampled, then squashed. OpenMixup's code, whose
                  vectors agree to rounding.
    "transposed"  `P^T (v_n + c + lam w_lam)`: columns of P, value of the own image, so that the logits lie on
                  the partner's positions; upsampled, then squashed. The mirrored form in the text after Eq.
                  6, and the first release.
    "paper"       `P v_n + c + lam w_lam`: rows of P summed against the value of the own image; squashed, then
                  upsampled. Eq. 4-6 literally, with sqrt(d) as the unspecified factor C of Eq. 6.

    With `mode="nearest"` the order of upsampling and sigmoid does not matter. The released mask loss is one
    mean over the batch, Eq. 7 is per sample: see `mask_loss`.

    Args:
        in_channels: C of the features.
        reduction: d = max(C // reduction, 1).
        lam_embed: where the lam channel is appended: "qkv" as in Eq. 4 and the released ImageNet settings,
            "v" to the value only, "none" as in the released CIFAR-100 and Tiny-ImageNet settings, whose mask
            ignores lam.
        mode: upsampling of the mask, "nearest", "bilinear" or "bicubic".
        convention: "released", "transposed" or "paper".
        init_std: weights are drawn from N(0, init_std^2), biases are 0. The released 0.01 starts at a flat
            mask of 0.5 and stays there for hundreds of steps; short trainings need more, see
            `fastmix.train.AutoMix`.

    Parameters are `query.weight (d, C [+1])`, `query.bias (d,)`, `value.weight (1, C [+1])` and `value.bias
    (1,)`; the column of lam comes last. Under autocast the projection of queries and keys runs in the reduced
    precision; value, biases, softmax and logits are float32.

    Example:
        >>> block = MixBlock(256)
        >>> mixed, mean = block.mix(images, index, block(features, index, lam))
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        lam_embed: str = "qkv",
        mode: str = "nearest",
        convention: str = "released",
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        _settings.one_of("MixBlock", "lam_embed", lam_embed, LAM_EMBEDS)
        _settings.one_of("MixBlock", "mode", mode, MODES)
        _settings.one_of("MixBlock", "convention", convention, CONVENTIONS)
        _settings.whole("MixBlock", "in_channels", in_channels)
        _settings.whole("MixBlock", "reduction", reduction)
        _settings.number("MixBlock", "init_std", init_std)
        self.in_channels, self.lam_embed, self.mode, self.convention = (
            in_channels,
            lam_embed,
            mode,
            convention,
        )
        self.init_std = init_std
        self.query = nn.Linear(in_channels + (lam_embed == "qkv"), max(in_channels // reduction, 1))
        self.value = nn.Linear(in_channels + (lam_embed != "none"), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, init_std^2), biases 0."""
        for layer in (self.query, self.value):
            nn.init.normal_(layer.weight, std=self.init_std)
            nn.init.zeros_(layer.bias)

    def extra_repr(self) -> str:
        return f"lam_embed={self.lam_embed!r}, mode={self.mode!r}, convention={self.convention!r}"

    @property
    def activation_first(self) -> bool:
        """Whether the sigmoid comes before the upsampling."""
        return self.convention == "paper"

    def project(self, features: Tensor) -> Projection:
        """The linear part, to be shared by several draws: features (N, C, h, w) -> `Projection`.

        Example:
            >>> shared = block.project(features)
            >>> strip = [block(shared, index, lam) for lam in (0.1, 0.5, 0.9)]
        """
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"fastmix.MixBlock: features must have shape (N, {self.in_channels}, h, w), got {tuple(features.shape)}"
            )
        n, c, h, w = features.shape
        # A view of channels_last features, one copy of others.
        z = features.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(n * h * w, c)
        weight = self.query.weight[:, :c]
        pixels = _project(z.view(n, h, w, c), weight)
        with torch.autocast(z.device.type, enabled=False):
            acc = torch.float64 if z.dtype is torch.float64 else torch.float32
            with_lam = self.lam_embed == "qkv"
            biases = torch.stack([self.query.bias, self.query.weight[:, c]] if with_lam else [self.query.bias])
            # The key biases are read off z like the value, (b W) z instead of b (W z): one narrow product, and no
            # second gradient of the size of `pixels`.
            narrow = torch.cat([self.value.weight[:, :c], biases @ weight])  # [K, C]
            rows = F.linear(z.to(acc), narrow.to(acc)).t().contiguous().view(narrow.shape[0], n, h * w)
        return Projection(pixels, rows, (h, w))

    def forward(self, features: Tensor | Projection, index: Tensor, lam: Tensor | float) -> Tensor | tuple[Tensor, ...]:
        """Logits of the own image's mask.

        Args:
            features: (N, C, h, w) floating, or what `project` returned for them.
            index: (N,) int64, the partner of each sample, or (D, N) for D draws from one launch.
            lam: weight of the own image in [0, 1], a float or a tensor () or (N,); for D draws (), (D,) or (D, N).

        Returns:
            (N, h, w) float32 (float64 for float64 features). For D draws a tuple of D such tensors: one that is
            detached costs nothing in the backward pass.

        Raises:
            ValueError: features or lam of a wrong shape.

        Example:
            >>> student, generator = block(features, torch.stack((index_a, index_b)), torch.tensor([0.3, 0.6]))
        """
        shared = features if isinstance(features, Projection) else self.project(features)
        n, _, d = shared.pixels.shape
        lam = _broadcast_lam(lam, index, n, shared.rows.dtype)
        scale = d**-0.5
        constant = self.value.bias
        if self.lam_embed != "none":
            weight_of_lam = self.value.weight[:, -1]
            constant = constant + (1 - lam if self.convention == "released" else lam) * weight_of_lam  # [..., 1]
        transpose = self.convention == "transposed"
        if self.convention == "released":
            value, *biases = shared.rows[:, index]
            value, constant = -value, -constant
        else:
            biases = shared.rows[1:, index]
            value = (shared.rows[0] + constant if transpose else shared.rows[0]).expand(*index.shape, -1)
        key_bias = biases[0] + lam * biases[1] if self.lam_embed == "qkv" else biases[0]
        logits = ops.pair_attention(
            shared.pixels, shared.pixels, value, index, scale * key_bias, scale=scale, transpose=transpose
        )
        if index.dim() == 1:
            return (logits if transpose else logits + constant).view(n, *shared.size)
        if not transpose:
            logits = map(torch.add, logits, constant.expand(*index.shape, 1))
        return tuple(part.view(n, *shared.size) for part in logits)

    def mix(
        self, images: Tensor, index: Tensor, logits: Tensor | Sequence[Tensor], **options
    ) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Mix images by a mask given as logits: one `fastmix.ops.mask_blend` with this block's upsampling.

        Args:
            images: (N, channels, H, W).
            index: (N,) int64, or (D, N) for D draws from one launch.
            logits: (N, h, w) from `forward`; for D draws its D tensors, or one (D, N, h, w).
            **options: `normalize`, `dtype`, `out` and `backend` of `fastmix.ops.mask_blend`.

        Returns:
            The mixed images and (N,) the mean of each mask, both differentiable with respect to the logits; for D
            draws each of the two is a tuple of D such tensors.
        """
        if not isinstance(logits, Tensor):
            logits = torch.stack(tuple(logits))
        return ops.mask_blend(images, index, logits, self.mode, "sigmoid", self.activation_first, **options)

    def mask(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """The mask itself, for pictures and measures: logits (N, h, w) -> (N, H, W) in [0, 1]."""
        if self.activation_first:
            return upsample(logits.sigmoid(), *size, self.mode)
        return upsample(logits, *size, self.mode).sigmoid()


def _broadcast_lam(lam: Tensor | float, index: Tensor, n: int, dtype: torch.dtype) -> Tensor | float:
    """A number as it is; a tensor with the dimensions of (*index.shape, r)."""
    if not isinstance(lam, Tensor):
        return lam
    allowed = ((), (n,)) if index.dim() == 1 else ((), index.shape[:1], index.shape)
    if lam.shape not in allowed:
        shapes = " or ".join(str(tuple(shape)) for shape in allowed)
        raise ValueError(f"fastmix.MixBlock: lam must have shape {shapes}, got {tuple(lam.shape)}")
    return lam.to(dtype).view(*lam.shape, *[1] * (index.dim() + 1 - lam.dim()))


def _project(z: Tensor, weight: Tensor) -> Tensor:
    """z (N, h, w, C), weight (d, C) -> (N, h*w, d)."""
    if z.device.type == "cpu" and z.dtype is not torch.float64:
        # oneDNN's 1x1 convolution takes half the time of the BLAS product at C = 1024.
        return F.conv2d(z.permute(0, 3, 1, 2), weight[:, :, None, None]).permute(0, 2, 3, 1).flatten(1, 2)
    return F.linear(z, weight).flatten(1, 2)


def mask_loss(mean: Tensor, lam: Tensor | float, margin: float = 0.1, per_sample: bool = False) -> Tensor:
    r"""Pull the mean of the mask to lam (AutoMix, Eq. 7, without the weight gamma).

    `max(|mean_n(mean - lam)| - margin, 0)`, one mean over the batch as in the released code, or, with
    `per_sample`, `mean_n max(|mean[n] - lam[n]| - margin, 0)` as in Eq. 7.

    Args:
        mean: (N,) mean of each own image's mask, as `mask_blend` returns it.
        lam: a float or a tensor () or (N,).
        margin: deviation that costs nothing, epsilon of Eq. 7.
        per_sample: hinge each sample instead of the batch mean.

    Returns:
        A scalar, at least 0; the gradient is 0 inside the margin.

    Example:
        >>> mixed, mean = block.mix(images, index, block(features, index, lam))
        >>> loss = gamma * mask_loss(mean, lam)
    """
    deviation = mean - lam
    if not per_sample:
        return (deviation.mean().abs() - margin).clamp(min=0)
    return (deviation.abs() - margin).clamp(min=0).mean()
