"""Residual networks for small images (He et al. 2016, section 4.2): a 3x3 stem and three stages."""

from __future__ import annotations

from torch import Tensor, nn

# 6 n + 2 layers, with n blocks in each of three stages.
DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a way around them.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's output for (batch, channels, height, width)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network for images of some 32 x 32 pixels.

    Args:
        depth: one of ``DEPTHS``.
        classes: size of the output.
        width: channels of the first stage; the next ones have twice and four times as many.
        zero_init_residual: let the last batch norm of each block begin with weight 0.
    """

    def __init__(
        self, depth: int, classes: int, width: int = 16, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        layers: list[Block] = []
        channels = width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for layer in layers:
                nn.init.zeros_(layer.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits of shape (batch, classes) for images of shape (batch, 3, height, width)."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.pool(x).flatten(1))
