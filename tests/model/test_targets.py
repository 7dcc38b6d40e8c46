import torch

from frcnn.targets import GroundTruth


def padded(boxes, labels):
    sizes = [(50, 40), (32, 64)]
    seeds = torch.tensor([-5, 2**62])
    return GroundTruth.pad(boxes, labels, sizes, [(64, 64), (32, 64)], seeds, torch.device("cpu"))


def test_ground_truth_is_padded_and_keeps_its_counts():
    boxes = [torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.zeros(0, 4)]
    gt = padded(boxes, [torch.tensor([7, 2**40]), torch.zeros(0, dtype=torch.long)])
    assert gt.boxes.shape == (2, 16, 4) and gt.boxes[0, :2].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert gt.boxes[0, 2:].eq(0).all() and gt.boxes[1].eq(0).all()
    assert gt.counts.tolist() == [2, 0]
    assert gt.labels.tolist() == [[7, 2**40, *[0] * 14], [0] * 16]
    assert gt.sizes.tolist() == [[50, 40], [32, 64]] and gt.padded_sizes.tolist() == [[64, 64], [32, 64]]
    assert gt.seeds.tolist() == [-5, 2**62]


def test_batches_have_few_sizes():
    for count, most in ((0, 16), (16, 16), (17, 32), (100, 128)):
        gt = padded([torch.rand(count, 4)] * 2, [torch.zeros(count, dtype=torch.long)] * 2)
        assert gt.boxes.shape == (2, most, 4) and gt.counts.tolist() == [count] * 2
        again = GroundTruth.unpack(gt.packed, 2)
        assert torch.equal(again.boxes, gt.boxes) and torch.equal(again.seeds, gt.seeds)
