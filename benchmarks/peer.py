"""torchvision's Faster R-CNN as the benchmark's peer, in whatever interpreter has torchvision.

Its detector gets the recipe's backbone and our weights, so that both work on the same proposals. It stays as
its users run it: frozen norms, RoIAlign with two samples per bin and axis. Runs without frcnn.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.measure import peak_bytes, reset_peak, resident_bytes, timed
from benchmarks.worker import serve

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Peer:
    """One torchvision detector, called by benchmarks/run.py through benchmarks/worker.py."""

    def load(
        self,
        weights: str,
        depth: int,
        groups: int,
        base_width: int,
        num_classes: int,
        size: list[int],
        device: str,
        precision: str,
        threads: int,
    ) -> dict[str, str]:
        """Build the detector. size: (height, width) of the images; weights: a state dict in our names."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.dtype = DTYPES.get(precision)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self.memory_before = resident_bytes()
        layers = ResNet(
            Bottleneck,
            list(BLOCKS[depth]),
            groups=groups,
            width_per_group=base_width,
            norm_layer=FrozenBatchNorm2d,
        )
        for name, parameter in layers.named_parameters():
            parameter.requires_grad = name.startswith(("layer2", "layer3", "layer4"))
        channels = [256, 512, 1024, 2048]
        backbone = BackboneWithFPN(
            layers,
            {f"layer{stage}": str(stage - 1) for stage in range(1, 5)},
            channels,
            256,
            LastLevelMaxPool(),
        )
        self.model = FasterRCNN(backbone, num_classes + 1, min_size=min(size), max_size=max(size))
        state = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
        self.model.load_state_dict(renamed(state))
        self.model.to(self.device).eval()
        return {"name": f"torchvision {torchvision.__version__.split('+')[0]}", "torch": torch.__version__}

    def take_images(self, file: str) -> None:
        """Take uint8 BGR images [B, H, W, 3] from an .npy file."""
        bgr = torch.from_numpy(np.load(file))
        self.uint8 = [image.flip(-1).permute(2, 0, 1).contiguous() for image in bgr]
        self.batch = self.model.transform([self._float(image) for image in self.uint8])[0]

    @torch.inference_mode()
    def detect(self) -> float:
        """Seconds from network input to detections in pixels of the image."""
        return timed(self._detect, self.device)

    @torch.inference_mode()
    def predict(self) -> float:
        """Seconds from uint8 images to detections."""
        return timed(self._predict, self.device)

    @torch.inference_mode()
    def counts(self) -> dict[str, float]:
        """Mean number of proposals and detections per image."""
        found = self._detect()
        return {
            "proposals": sum(map(len, self.proposals)) / len(found),
            "detections": sum(len(image["boxes"]) for image in found) / len(found),
        }

    def reset_peak(self) -> None:
        reset_peak(self.device)

    def peak_bytes(self) -> int | None:
        return peak_bytes(self.device, self.memory_before)

    def start_training(self, boxes: list, labels: list) -> None:
        """Get ready for steps on the images; class 0 is torchvision's background."""
        self.targets = [
            {
                "boxes": torch.tensor(of_image, device=self.device, dtype=torch.float32),
                "labels": torch.tensor(names, device=self.device) + 1,
            }
            for of_image, names in zip(boxes, labels, strict=True)
        ]
        self.inputs = [self._float(image) for image in self.uint8]
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trainable, lr=1e-6, momentum=0.9, weight_decay=1e-4)
        self.model.train()

    def train_step(self) -> float:
        """Seconds of forward, backward and update."""
        return timed(self._train_step, self.device)

    def _train_step(self) -> None:
        with self._autocast():
            loss = sum(self.model(self.inputs, self.targets).values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _detect(self) -> list[dict[str, Tensor]]:
        images, model = self.batch, self.model
        with self._autocast():
            features = model.backbone(images.tensors)
            self.proposals, _ = model.rpn(images, features)
            found, _ = model.roi_heads(features, self.proposals, images.image_sizes)
        originals = [tuple(image.shape[-2:]) for image in self.uint8]
        return model.transform.postprocess(found, images.image_sizes, originals)

    def _predict(self) -> list[dict[str, Tensor]]:
        with self._autocast():
            return self.model([self._float(image) for image in self.uint8])

    def _float(self, image: Tensor) -> Tensor:
        return image.to(self.device).float() / 255

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in torchvision's names and class order (background first, with its own deltas)."""
    renames = {
        "backbone.": "backbone.body.",
        "neck.lateral_convs.": "backbone.fpn.inner_blocks.",
        "neck.fpn_convs.": "backbone.fpn.layer_blocks.",
        "rpn_head.rpn_conv.": "rpn.head.conv.0.0.",
        "rpn_head.rpn_cls.": "rpn.head.cls_logits.",
        "rpn_head.rpn_reg.": "rpn.head.bbox_pred.",
        "roi_head.bbox_head.shared_fcs.0.": "roi_heads.box_head.fc6.",
        "roi_head.bbox_head.shared_fcs.1.": "roi_heads.box_head.fc7.",
        "roi_head.bbox_head.fc_cls.": "roi_heads.box_predictor.cls_score.",
        "roi_head.bbox_head.fc_reg.": "roi_heads.box_predictor.bbox_pred.",
    }
    found = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        ours, theirs = next(pair for pair in renames.items() if name.startswith(pair[0]))
        renamed_to = theirs + name.removeprefix(ours)
        if name.startswith("neck."):
            renamed_to = renamed_to.replace(".conv.", ".0.")
        if ".fc_cls." in name:
            tensor = torch.cat([tensor[-1:], tensor[:-1]])
        elif ".fc_reg." in name:
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        found[renamed_to] = tensor
    return found


if __name__ == "__main__":
    serve(Peer())
