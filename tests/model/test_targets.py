import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.targets import GroundTruth, sample


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.integers(1, 50),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(0, 5),
)
def test_sample_takes_positives_up_to_their_share_then_negatives(gt_index, samples, fraction, seed):
    torch.manual_seed(seed)
    gt_index = torch.tensor([gt_index, gt_index[::-1]])
    drawn = sample(gt_index, samples, fraction)
    for row in range(2):
        index = drawn.index[row]
        positives = index[drawn.positive[row]]
        negatives = index[drawn.negative[row]]
        used = torch.cat([positives, negatives])
        assert len(used.unique()) == len(used)
        assert (gt_index[row, positives] > 0).all()
        assert (gt_index[row, negatives] == 0).all()
        most = min(int((gt_index[row] > 0).sum()), int(samples * fraction))
        assert len(positives) == most
        assert len(negatives) == min(int((gt_index[row] == 0).sum()), samples - most)


def test_sample_is_uniform_over_the_candidates():
    torch.manual_seed(0)
    gt_index = torch.zeros(400, 20, dtype=torch.long)
    gt_index[:, :10] = 1
    drawn = sample(gt_index, 8, 0.5)
    counts = torch.bincount(drawn.index.flatten(), minlength=20).float()
    assert drawn.used.all()
    # 400 draws of 4 out of 10: 160 expected per candidate, standard deviation 9.8
    assert (counts - 160).abs().max() < 45


def test_average_factor_counts_at_least_one_of_each_kind_per_image():
    gt_index = torch.tensor([[0, 0, 0, 0], [1, 0, -1, -1]])
    assert sample(gt_index, 4, 0.5).average_factor() == (1 + 4) + (1 + 1)


def test_ground_truth_is_padded_and_keeps_its_counts():
    boxes = [torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(0, 4)]
    gt = GroundTruth.pad(boxes, [torch.tensor([7]), torch.zeros(0, dtype=torch.long)], torch.device("cpu"))
    assert gt.boxes.shape == (2, 1, 4)
    assert gt.present.tolist() == [[True], [False]]
    assert gt.counts.tolist() == [1, 0]
    assert gt.labels[0, 0] == 7


def test_a_batch_without_any_box_still_has_a_slot():
    empty = [torch.zeros(0, 4)] * 2
    gt = GroundTruth.pad(empty, [torch.zeros(0, dtype=torch.long)] * 2, torch.device("cpu"))
    assert gt.boxes.shape == (2, 1, 4)
    assert not gt.present.any()
