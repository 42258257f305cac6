"""Models by name, and models from the manifests of others."""

import pytest
import torch

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.vision import models

OWN = models.describe("resnet20_cifar", 10, 16, 32)
LIKE = torch.zeros(1)


def state_of(config):
    return models.student(config).state_dict()


def parameters_of_resnext152(width: int, classes: int) -> int:
    """Counted from the architecture: 3, 8, 36, 3 blocks of 32 groups."""
    total = 3 * 64 * 7 * 7 + 2 * 64
    inputs = 64
    for blocks, planes in ((3, 64), (8, 128), (36, 256), (3, 512)):
        inner, outputs = planes * width * 32 // 64, planes * 4
        for block in range(blocks):
            total += inputs * inner + 2 * inner
            total += inner // 32 * inner * 9 + 2 * inner
            total += inner * outputs + 2 * outputs
            if block == 0:
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(("arch", "width"), [("resnext152_32x4d", 4), ("resnext152_32x8d", 8)])
def test_resnext152_has_the_layers_it_should(arch, width):
    config = models.describe(arch, 1000, 16, 224)
    with torch.device("meta"):
        model = models.student(config)
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters_of_resnext152(width, 1000)


@pytest.mark.full
def test_resnext152_trains_a_step_and_loads_as_a_peer():
    config = models.describe("resnext152_32x8d", 10, 16, 64)
    model = models.student(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, targets = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    before = model.fc.weight.detach().clone()
    torch.nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()
    assert not model.fc.weight.equal(before)
    peer = models.peer(config, OWN, 64, LIKE, model.state_dict())
    peer.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert peer.eval()(images).equal(model.eval()(images))


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # He et al. 2016, table 6: 0.27M, 0.46M; and the two projections, which theirs has none of.
    [(20, 269722 + 2 * 0), (32, 464154)],
)
def test_cifar_networks_have_the_size_of_the_original(depth, parameters):
    model = models.student(models.describe(f"resnet{depth}_cifar", 10, 16, 32))
    projections = sum(i * o + 2 * o for i, o in ((16, 32), (32, 64)))
    assert sum(p.numel() for p in model.parameters()) == parameters + projections


@pytest.mark.parametrize(
    "config",
    [
        models.describe("resnet8_cifar", 10, 4, 32),
        models.describe("shufflenet_v2_x0_5", 10, 16, 32),
        models.describe("vit_b_16", 10, 16, 32),
        models.describe("googlenet", 10, 16, 64),
        models.describe("regnet_x_400mf", 10, 16, 32),
    ],
    ids=lambda config: config["arch"],
)
def test_a_peer_of_another_architecture_is_built_from_its_description(config):
    state = state_of(config)
    side = 64 if config["arch"] == "googlenet" else 32
    peer = models.peer(config, OWN, side, LIKE, state)
    peer.load_state_dict(state)
    assert peer.eval()(torch.zeros(2, 3, side, side)).shape == (2, 10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "resnet1001"}, "no architecture"),
        ({"arch": "os.system"}, "no architecture"),
        ({"arch": ["resnet50"]}, "no architecture"),
        ({"arch": None}, "no architecture"),
        ({"weights": "DEFAULT"}, "'weights'"),
        ({"width": 10**9}, "width"),
        ({"width": True}, "width"),
        ({"width": 0.5}, "width"),
        ({"width": -1}, "width"),
        ({"classes": 11}, "11 classes"),
        ({"classes": 10.0}, "classes"),
        ({"arch": "resnet50"}, "'width'"),
        ({"width": 32}, "names and shapes"),
        ({"arch": "resnet32_cifar"}, "names and shapes"),
    ],
)
def test_a_peer_that_is_not_as_it_should_be_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        models.peer({**OWN, **change}, OWN, 32, LIKE, state_of(OWN))


@pytest.mark.parametrize("arch", ["vit_b_32", "resnet20_cifar"])
def test_a_peer_for_images_of_another_size_is_refused(arch):
    own, other = models.describe(arch, 2, 16, 32), models.describe("vit_b_32", 2, 16, 64)
    with pytest.raises(ValueError, match="images of 64 pixels, and this group's have 32"):
        models.peer(other, own, 32, LIKE, {})


def test_a_peer_that_cannot_take_the_images_is_refused():
    config = models.describe("alexnet", 10, 16, 32)
    with pytest.raises(ValueError, match="does not take images of 32 pixels"):
        models.peer(config, OWN, 32, LIKE, state_of(config))


@pytest.mark.parametrize(
    ("arch", "side"), [("vit_b_16", 100), ("alexnet", 32), ("squeezenet1_1", 16), ("maxvit_t", 32)]
)
def test_an_image_size_that_the_model_cannot_take(arch, side):
    config = models.describe(arch, 10, 16, side)
    with pytest.raises(ConfigError, match=rf"^--image-size {side} does not go with --arch {arch} "):
        models.check_image_size(config, side)


@pytest.mark.parametrize(
    ("arch", "side", "batch", "takes"),
    [
        ("resnet18", 32, 1, False),
        ("resnet18", 32, 2, True),
        ("resnet18", 64, 1, True),
        ("regnet_y_400mf", 32, 1, False),
        ("regnet_y_400mf", 64, 1, True),
        ("mobilenet_v3_small", 32, 1, False),
        ("vgg11", 32, 1, True),
        ("convnext_tiny", 32, 1, True),
        ("resnet8_cifar", 12, 1, True),
    ],
)
def test_batch_norm_of_one_value_is_refused_and_nothing_else(arch, side, batch, takes):
    config = models.describe(arch, 10, 16, side)
    if takes:
        models.check_batch_size(config, side, batch)
    else:
        says = f"^--batch-size 1 does not go with --arch {arch} and --image-size {side} "
        with pytest.raises(ConfigError, match=says):
            models.check_batch_size(config, side, batch)
    # So it is.
    model = models.student(config).train()
    images = torch.randn(batch, 3, side, side)
    if takes:
        assert model(images).shape == (batch, 10)
    else:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(images)


@pytest.mark.full
def test_every_model_takes_the_size_that_it_was_made_for():
    for arch in models.names():
        side = 299 if arch == "inception_v3" else 32 if arch.endswith("_cifar") else 224
        models.check_image_size(models.describe(arch, 10, 16, side), side)


def test_zero_init_gamma():
    model = models.student(OWN, zero_init_gamma=True)
    gammas = [m.weight for name, m in model.named_modules() if name.endswith("bn2")]
    assert len(gammas) == 9
    assert not any(gamma.any() for gamma in gammas)
    with pytest.raises(ConfigError, match="--zero-init-gamma is for residual networks"):
        models.student(models.describe("squeezenet1_1", 10, 16, 32), zero_init_gamma=True)
