import math

import pytest
import torch

from frcnn.soft_nms import soft_nms


def one_by_one(boxes, scores, groups, threshold, method, sigma=0.5, min_score=1e-3):
    """The paper's loop, a box at a time, in plain Python."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inter = max(width, 0) * max(height, 0)
        return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)

    boxes, current = boxes.tolist(), scores.tolist()
    kept = {}
    for group in set(groups.tolist()):
        waiting = [i for i in range(len(boxes)) if groups[i] == group]
        while waiting:
            best = max(waiting, key=lambda i: (current[i], -i))
            waiting.remove(best)
            kept[best] = current[best]
            for i in waiting:
                overlap = iou(boxes[best], boxes[i])
                if method == "gaussian":
                    current[i] *= math.exp(-(overlap**2) / sigma)
                elif overlap > threshold:
                    current[i] *= 1 - overlap
            waiting = [i for i in waiting if current[i] >= min_score]
    return sorted(kept, key=lambda i: -kept[i]), kept


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(4))
def test_matches_the_plain_loop(method, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(60, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(60, 2, generator=generator)], 1).double()
    scores = torch.rand(60, generator=generator).double()
    scores[:5] = torch.linspace(0.002, 0.003, 5)  # so that some fall below the least score
    groups = torch.randint(0, 4, (60,), generator=generator) * 3
    keep, lowered = soft_nms(boxes, scores, groups, 0.3, method)
    order, expected = one_by_one(boxes, scores, groups, 0.3, method)
    assert keep.tolist() == order
    assert torch.allclose(lowered[keep], torch.tensor([expected[i] for i in order]).double(), atol=1e-12)


def test_no_boxes():
    keep, scores = soft_nms(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5, "linear"
    )
    assert len(keep) == len(scores) == 0
