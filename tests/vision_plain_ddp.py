"""A training loop as torchvision's references have it: one worker of two, run by torchrun's rules.

    python vision_plain_ddp.py FOLDER RESULT SIDE BATCH LR

Nothing of fairseq_codistill is used, but what it documents: which numbers seed the order of the
images and their augmentation.
"""

import os
import sys

import numpy as np
import torch
import torchvision
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

SEED, EPOCHS, ARCH = 1, 2, "shufflenet_v2_x0_5"


def main() -> None:
    folder, result, side, batch_size, lr = sys.argv[1:]
    side, batch_size, lr = int(side), int(batch_size), float(lr)
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    transform = v2.Compose(
        [
            v2.RandomCrop(side, padding=side // 8),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = ImageFolder(os.path.join(folder, "train"))
    torch.manual_seed(SEED)
    model = torchvision.models.get_model(ARCH, num_classes=len(images.classes))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    criterion = nn.CrossEntropyLoss()
    losses = []
    for epoch in range(1, EPOCHS + 1):
        sequence = np.random.SeedSequence([0, SEED, epoch])
        order = np.random.default_rng(sequence).permutation(len(images))
        for start in range(0, len(order) - workers * batch_size + 1, workers * batch_size):
            mine = order[start : start + workers * batch_size][rank * batch_size :][:batch_size]
            batch, targets = [], []
            for index in mine:
                numbers = np.random.SeedSequence([1, SEED, epoch, int(index)])
                torch.manual_seed(int(numbers.generate_state(1, np.uint64)[0]) >> 1)
                image, target = images[index]
                batch.append(transform(v2.functional.pil_to_tensor(image)))
                targets.append(target)
            loss = criterion(ddp(torch.stack(batch)), torch.tensor(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            both = loss.detach().double()
            dist.all_reduce(both)
            losses.append(both.item() / workers)
        scheduler.step()
    if rank == 0:
        torch.save({"model": model.state_dict(), "losses": losses}, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
