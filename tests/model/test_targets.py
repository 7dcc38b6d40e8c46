import torch

from frcnn.targets import GroundTruth


def padded(boxes, labels, ignore_iof=0.0):
    sizes = [(50, 40), (32, 64)]
    seeds = torch.tensor([-5, 2**62])
    device = torch.device("cpu")
    return GroundTruth.pad(boxes, labels, sizes, [(64, 64), (32, 64)], seeds, device, ignore_iof)


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


def test_regions_to_ignore_come_behind_the_objects():
    boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9], [2, 2, 4, 4]])
    labels = torch.tensor([-1, 3, -1, 0])
    images = [boxes, boxes[:1]], [labels, labels[:1]]
    gt = padded(*images)
    assert gt.counts.tolist() == [2, 0] and gt.ignored is None
    assert gt.labels[0, :4].tolist() == [3, 0, -1, -1] and torch.equal(gt.boxes[0, :4], boxes[[1, 3, 0, 2]])
    for made in (padded(*images, 0.5), GroundTruth.unpack(gt.packed, 2, 0.5)):
        assert made.ignored.shape == made.boxes.shape
        assert torch.equal(made.ignored[0, 2:4], boxes[[0, 2]]) and torch.equal(made.ignored[1, 0], boxes[0])
        assert made.ignored[0, :2].eq(0).all() and made.ignored[:, 4:].eq(0).all()
