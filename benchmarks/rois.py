"""Boxes in the places and sizes that a detector has them in, for timing operators."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64)


@dataclass
class Image:
    """Sizes, and boxes as a detector has them: a few objects, many proposals around each."""

    height: int
    width: int
    device: torch.device
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def padded(self) -> tuple[int, int]:
        return -(-self.height // 32) * 32, -(-self.width // 32) * 32

    def level_sizes(self, levels: int) -> list[tuple[int, int]]:
        height, width = self.padded
        return [(-(-height // s), -(-width // s)) for s in STRIDES[:levels]]

    def random(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def objects(self, count: int) -> Tensor:
        """[count, 4]: centers anywhere, sizes log-uniform from 16 pixels to half the image."""
        limit = torch.tensor([self.width, self.height])
        low = torch.log(torch.tensor(16.0))
        size = torch.exp(low + self.random(count, 1) * (torch.log(limit.min() * 0.5) - low))
        aspect = torch.exp((self.random(count, 1) - 0.5) * 1.4)
        half = torch.cat([size * aspect, size / aspect], dim=1) / 2
        center = self.random(count, 2) * limit
        corners = torch.cat([center - half, center + half], dim=1)
        return corners.clamp(min=0).minimum(limit.repeat(2))

    def proposals(self, count: int) -> tuple[Tensor, Tensor]:
        """[count, 4] boxes around 60 objects, moved and resized by about a fifth, and scores, best first."""
        seeds = self.objects(60)
        own = seeds[torch.randint(0, len(seeds), (count,), generator=self.generator)]
        size = torch.cat([own[:, 2:] - own[:, :2]] * 2, dim=1)
        noise = torch.randn(count, 4, generator=self.generator)
        limit = torch.tensor([self.width, self.height] * 2)
        boxes = (own + noise * size * 0.2).clamp(min=0).minimum(limit)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = torch.exp(-noise.square().sum(dim=1) * 0.5) * self.random(count)
        order = scores.argsort(descending=True)
        return boxes[order].to(self.device), scores[order].to(self.device)

    def rois(self, batch: int, count: int) -> Tensor:
        """[batch * count, 5]"""
        rows = []
        for image in range(batch):
            boxes, _ = self.proposals(count)
            rows.append(torch.cat([boxes.new_full((count, 1), image), boxes], dim=1))
        return torch.cat(rows)
