import time

import torch
from torch import nn

from benchmarks.stages import StageClock


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self):
        time.sleep(self.seconds)


class Proposer(Slow):
    def propose(self):
        time.sleep(0.03)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck, self.rpn_head = Slow(0.02), Slow(0.0), Proposer(0.01)
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = Slow(0.01)

    def detect(self):
        self.backbone()
        self.neck()
        self.rpn_head()
        self.rpn_head.propose()
        time.sleep(0.02)  # RoIAlign
        self.roi_head.bbox_head()
        time.sleep(0.01)  # NMS


def test_stages_add_up_to_the_call_and_the_network_is_left_as_it_was():
    network = Network()
    started = time.perf_counter()
    seconds = StageClock(network, torch.device("cpu")).split(network.detect)
    whole = time.perf_counter() - started
    assert list(seconds) == ["backbone", "FPN", "RPN", "proposals", "RoIAlign", "head", "NMS"]
    least = {
        "backbone": 0.02,
        "FPN": 0,
        "RPN": 0.01,
        "proposals": 0.03,
        "RoIAlign": 0.02,
        "head": 0.01,
        "NMS": 0.01,
    }
    assert all(seconds[stage] >= least[stage] for stage in least)
    assert abs(sum(seconds.values()) - whole) < 0.02
    assert "forward" not in vars(network.backbone) and "propose" not in vars(network.rpn_head)
