"""A run is the same whatever the number of its processes: gradients, weights, resuming, evaluation."""

import json
import os

import pytest
import torch
from runs import SERVER, Run, group_of
from tiny_coco import read_content, write_content, write_tiny

from frcnn.checkpoint.run_state import read_training_state
from frcnn.checkpoint.save import checksum

SIX = ("--batch-size", 1, "--epochs", 3, "--workers", 0, "--log-every", 1, "--eval-every", 3)
SIX += ("--data.keep-empty", "True", "--model.backbone.norm-eval", "True")


@pytest.fixture
def seven(tmp_path):
    """Seven images, one without boxes: two steps of six batches an epoch, the second of one batch only."""
    annotations, images = write_tiny(tmp_path / "seven", images=7)
    content = read_content(annotations)
    empty = content["images"][2]["id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != empty]
    return write_content(tmp_path / "seven", content), images


@pytest.fixture
def together(start, seven):
    """``together(count, name, ...)``: what so many processes train, in steps of six batches; they must end
    well, or with code 1 where a hook is to fail them."""

    def together(count, name, *options, code=0, batches=6, **hooks):
        options = (*SIX, "--schedule.accumulate", batches // count, *options)
        group = [
            start(name, *options, data=seven, validate=True, environment=environment, **hooks)
            for environment in group_of(count)
        ]
        for run in group:
            assert run.end(120) == code, run.text()
        return group

    return together


def state(tmp_path, name):
    return read_training_state(tmp_path / name / "last.pth")


def learned(tmp_path, name):
    """Weights and momentum, without the statistics of norms, which are the first process's."""
    content = state(tmp_path, name)
    momentum = {number: entry["momentum_buffer"] for number, entry in content["optimizer"]["state"].items()}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = {key: value for key, value in content["state_dict"].items() if not key.endswith(statistics)}
    return {**weights, **momentum}


def distance(tmp_path, one, other):
    """The largest one of a tensor of the other run, as a share of the tensor. Sums of another order differ by
    1e-7, and six steps of a network like this make more of that."""
    first, second = learned(tmp_path, one), learned(tmp_path, other)
    return max(float((second[key] - value).norm() / value.norm()) for key, value in first.items())


def test_one_two_and_three_processes_learn_the_same(together, tmp_path):
    """In the last step of an epoch two of three have no batch, and one image has no boxes."""
    rates = []
    for count in (1, 2, 3):
        together(count, f"by{count}")
        lines = [
            json.loads(line) for line in (tmp_path / f"by{count}" / "log.jsonl").read_text().splitlines()
        ]
        rates.append([line["lr"] for line in lines])
        assert state(tmp_path, f"by{count}")["meta"]["iter"] == 6
    assert rates[0] == rates[1] == rates[2]
    for count in (2, 3):
        assert distance(tmp_path, "by1", f"by{count}") < 1e-3


def test_four_processes_learn_what_one_does(together, tmp_path):
    together(1, "by1", batches=4)
    together(4, "by4", batches=4)
    assert state(tmp_path, "by1")["meta"]["iter"] == state(tmp_path, "by4")["meta"]["iter"] == 6
    assert distance(tmp_path, "by1", "by4") < 1e-3


def test_a_run_goes_on_with_another_number_of_processes(together, tmp_path):
    """With as many it ends with the same bits; with others, up to the order of sums."""
    together(2, "whole")
    for count in (2, 1, 3):
        name = f"then{count}"
        together(2, name, "--save-every", 1, code=1, fail_at=3)
        assert state(tmp_path, name)["meta"]["iter"] == 3
        # what a run accumulates is in its recipe; by whom, is not
        first, *_ = together(count, name, "--schedule.accumulate", 3, "--resume")
        assert (f"{count} processes go on with a run of 2" in first.text()) == (count != 2)
        assert state(tmp_path, name)["training"]["settings"]["batches_per_step"] == 6
        if count == 2:
            assert checksum(state(tmp_path, "whole")) == checksum(state(tmp_path, name))
        assert distance(tmp_path, "whole", name) < 1e-3


def test_more_processes_than_batches_are_refused(together, tmp_path):
    together(1, "run", "--epochs", 1, batches=1)
    before = (tmp_path / "run" / "last.pth").read_bytes()
    group = together(2, "run", "--epochs", 1, "--schedule.accumulate", 1, "--resume", code=1, batches=2)
    assert "a step of that run has 1 batches, which cannot be dealt out to 2 processes" in group[0].text()
    assert (tmp_path / "run" / "last.pth").read_bytes() == before


def evaluated(checkpoint, data, environment, output):
    """In a process of its own: the metrics, the detections' file, and how often this process scored."""
    os.environ.update(environment)
    import tiny_recipe

    import frcnn.backbone
    import frcnn.engine.evaluate as module
    from frcnn.engine.distributed import started_processes
    from frcnn.zoo.build import load

    torch.set_num_threads(1)
    frcnn.backbone.STAGE_CHANNELS = tiny_recipe.STAGE_CHANNELS
    scored, score = [], module.score
    module.score = lambda *arguments: (scored.append(1), score(*arguments))[1]
    with started_processes("cpu"):
        result = module.evaluate(load(checkpoint), *data, output=output.with_suffix(".coco"), losses=True)
    assert len(result.failed) == 1
    numbers = [result.metrics, result.per_class, result.losses, sorted(result.failed), len(scored)]
    output.write_text(json.dumps(numbers))


def test_evaluation_is_the_same_to_the_last_digit(together, tmp_path, seven):
    """Every image once, by one process, one image that cannot be used by none, and the metrics once, by the
    first. The detections are the same up to their order."""
    together(1, "run", "--model.roi-head.score-threshold", 0.01)
    (seven[1] / "4.png").write_bytes(b"not an image")
    found = {}
    for count in (1, 2, 3):
        outputs = [tmp_path / f"{count}-{rank}.json" for rank in range(count)]
        processes = [
            SERVER.Process(target=evaluated, args=(tmp_path / "run" / "last.pth", seven, *rest))
            for rest in zip(group_of(count), outputs, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
        numbers = [json.loads(output.read_text()) for output in outputs]
        assert [one.pop() for one in numbers] == [1] + [0] * (count - 1)
        assert all(one == numbers[0] for one in numbers)
        detections = json.loads(outputs[0].with_suffix(".coco").read_text())
        found[count] = numbers[0], sorted(map(json.dumps, detections))
    assert len(found[1][1]) > 20 and found[1][0][0]["bbox_mAP"] > 0
    assert found[1] == found[2] == found[3]


def test_the_command_shares_the_images_too(together, tmp_path, seven):
    """The first process prints and writes what one alone does, also where some have no image."""
    together(1, "run", "--epochs", 1, "--model.roi-head.score-threshold", 0.01)
    words = ["eval", tmp_path / "run" / "last.pth", "--annotations", seven[0], "--images", seven[1]]
    texts, found = [], []
    for count in (1, 2, 8):
        output = tmp_path / f"{count}.json"
        group = [
            Run(
                [*words, "--device", "cpu", "--output", output],
                tmp_path / f"{count}-{rank}.txt",
                environment=one,
            )
            for rank, one in enumerate(group_of(count))
        ]
        assert [run.end(120) for run in group] == [0] * count, group[-1].text()
        first, *others = [run.text() for run in group]
        assert not any("bbox_mAP" in text for text in others)
        texts.append([line for line in first.splitlines() if line.startswith("bbox_")])
        found.append(sorted(map(json.dumps, json.loads(output.read_text()))))
    assert len(texts[0]) == 12 and texts[0] == texts[1] == texts[2]
    assert len(found[0]) > 20 and found[0] == found[1] == found[2]
