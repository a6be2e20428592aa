"""Train the network until it classifies well, and save its checkpoint.

Run ``python examples/digits/train.py OUT.pth``. Learned γ, β and statistics are what a fold is about: those
of a network that was never trained are 1, 0, 0 and 1, and prove nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from data import digits
from network import digits_resnet

EPOCHS = 15
BATCH = 64
LEARNING_RATE = 0.02
ENOUGH = 0.97


def accuracy(model: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of the images whose largest logit is their label's."""
    model.eval()
    with torch.inference_mode():
        return float((model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def train(seed: int = 0, network: Callable[[], nn.Module] = digits_resnet) -> tuple[nn.Module, float]:
    """The trained network, in eval mode, and its test accuracy."""
    torch.manual_seed(seed)
    train_x, train_y, test_x, test_y = digits()
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    model = network()
    generator = torch.Generator().manual_seed(seed)
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4 * LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), accuracy(model, test_x, test_y)


def main() -> int:
    """Train, save, and say how well it classifies."""
    out = Path(sys.argv[1])
    model, score = train()
    print(f"test accuracy {score:.2%}")
    if score < ENOUGH:
        print(f"the network did not learn: under {ENOUGH:.0%}", file=sys.stderr)
        return 1
    torch.save(model.state_dict(), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
