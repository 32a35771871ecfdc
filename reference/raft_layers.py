"""The convolutional parts of RAFT: the residual encoders, the motion encoder, the recurrent unit, the two heads.

Source: Z. Teed and J. Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020, sections 3.1 and
3.3 and the appendix's figure of the large model. Attribute names follow the published checkpoints, so that a state dict
of princeton-vl's (its ``module.`` prefix removed) loads with ``strict=True``.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_CHANNELS = 128
"""Channels of the recurrent state."""
CONTEXT_CHANNELS = 128
"""Channels of the context features that every iteration reads."""
UPSAMPLING = 8
"""Side of the block of pixels that one cell of the coarse flow covers."""

_MASK_GAIN = 0.25
"""The mask's logits are scaled by this, which the published weights were trained with (it balances gradients)."""


_NORM_EPS = 1e-5

Norm = Literal["instance", "image", "running"]
"""``instance``: each image's statistics, no weights. ``image``: each image's statistics, then batch norm's scale and
shift. ``running``: batch norm with its stored statistics."""


class _InstanceNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x.float(), eps=_NORM_EPS).to(x.dtype)


class _ImageNorm(nn.BatchNorm2d):
    """Batch norm in training mode on a batch of one image, for batches of any size: see :class:`Encoder`."""

    def forward(self, x: Tensor) -> Tensor:
        wide = F.instance_norm(x.float(), weight=self.weight.float(), bias=self.bias.float(), eps=_NORM_EPS)
        return wide.to(x.dtype)


class _RunningNorm(nn.BatchNorm2d):
    """Batch norm in eval mode, whatever the mode the module is in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "instance":
        return _InstanceNorm()
    if kind == "image":
        return _ImageNorm(channels, eps=_NORM_EPS)
    return _RunningNorm(channels, eps=_NORM_EPS)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each normalised and rectified, beside a shortcut (a 1x1 convolution where the stride is 2).

    Args:
        c_in: channels in.
        c_out: channels out.
        norm: the normalisation.
        stride: 1 or 2, of the first convolution.
    """

    def __init__(self, c_in: int, c_out: int, norm: Norm, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.norm1 = _norm(norm, c_out)
        self.norm2 = _norm(norm, c_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1:
            # One module under two names: published state dicts hold its tensors twice, as norm3 and as downsample.1.
            self.norm3 = _norm(norm, c_out)
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(shortcut + y)


class Encoder(nn.Module):
    """The residual encoder, of the features (instance norm) and of the context (batch norm).

    The paper freezes the context encoder's batch norm to its running statistics. LiveMoments' inference code never puts
    RAFT in eval mode, so it normalises by the statistics of the batch, which there is one image; the recorded flows
    agree with that to 3e-7 and differ by 0.3 from the paper's form. ``norm="image"`` computes it for each image on its
    own, so that a result does not depend on what else is in the batch.

    Args:
        c_out: channels of the result.
        norm: the normalisation.
    """

    def __init__(self, c_out: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = _norm(norm, 64)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, norm, 1), ResidualBlock(64, 64, norm, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, norm, 2), ResidualBlock(96, 96, norm, 1))
        self.layer3 = nn.Sequential(ResidualBlock(96, 128, norm, 2), ResidualBlock(128, 128, norm, 1))
        self.conv2 = nn.Conv2d(128, c_out, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, c_out, H/8, W/8)."""
        x = F.relu(self.norm1(self.conv1(image)))
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class MotionEncoder(nn.Module):
    """Mixes the correlation features and the current flow into 128 channels, the last two being the flow itself.

    Args:
        c_correlation: channels of the looked-up correlations.
    """

    def __init__(self, c_correlation: int) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(c_correlation, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(256, 126, 3, padding=1)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        """flow (B, 2, h, w) in cells, correlation (B, c_correlation, h, w), to (B, 128, h, w)."""
        c = F.relu(self.convc2(F.relu(self.convc1(correlation))))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        mixed = F.relu(self.conv(torch.cat([c, f], dim=1)))
        return torch.cat([mixed, flow], dim=1)


class SeparableConvGRU(nn.Module):
    """A convolutional gated recurrent unit, run along the rows (1x5) and then along the columns (5x1).

    Args:
        c_hidden: channels of the state.
        c_input: channels of the input.
    """

    def __init__(self, c_hidden: int, c_input: int) -> None:
        super().__init__()
        channels = c_hidden + c_input
        self.convz1 = nn.Conv2d(channels, c_hidden, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(channels, c_hidden, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(channels, c_hidden, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(channels, c_hidden, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(channels, c_hidden, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(channels, c_hidden, (5, 1), padding=(2, 0))

    @staticmethod
    def _step(h: Tensor, x: Tensor, update: nn.Module, reset: nn.Module, candidate: nn.Module) -> Tensor:
        hx = torch.cat([h, x], dim=1)
        z = torch.sigmoid(update(hx))
        r = torch.sigmoid(reset(hx))
        q = torch.tanh(candidate(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """State (B, c_hidden, h, w) and input (B, c_input, h, w) to the next state."""
        h = self._step(h, x, self.convz1, self.convr1, self.convq1)
        return self._step(h, x, self.convz2, self.convr2, self.convq2)


class FlowHead(nn.Module):
    """Reads the change of the flow off the recurrent state."""

    def __init__(self, c_hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_hidden, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, c_hidden, h, w) to (B, 2, h, w), in cells."""
        return self.conv2(F.relu(self.conv1(h)))


class UpdateBlock(nn.Module):
    """One iteration's network. The mask head is called on its own, because only the last iteration's mask is used.

    Args:
        c_correlation: channels of the looked-up correlations.
    """

    def __init__(self, c_correlation: int) -> None:
        super().__init__()
        self.encoder = MotionEncoder(c_correlation)
        self.gru = SeparableConvGRU(HIDDEN_CHANNELS, CONTEXT_CHANNELS + 128)
        self.flow_head = FlowHead(HIDDEN_CHANNELS)
        self.mask = nn.Sequential(
            nn.Conv2d(HIDDEN_CHANNELS, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 9 * UPSAMPLING**2, 1),
        )

    def forward(self, h: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """The next state (B, 128, h, w) and the change of the flow (B, 2, h, w), in cells."""
        motion = self.encoder(flow, correlation)
        h = self.gru(h, torch.cat([context, motion], dim=1))
        return h, self.flow_head(h)

    def mask_logits(self, h: Tensor) -> Tensor:
        """Logits of the convex combinations, (B, 9 * 64, h, w): by neighbour, then row and column inside the cell."""
        return self.mask(h) * _MASK_GAIN
