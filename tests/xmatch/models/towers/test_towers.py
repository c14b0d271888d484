from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from small_models import golden, tiny_config
from timm.layers import freeze_batch_norm_2d

from xmatch.errors import InputError
from xmatch.models.towers.image import ImageTower, ImageTowerConfig
from xmatch.models.towers.text import TextTower, TextTowerConfig, parse_lang_layers

NAME = "test_resnet.r160_in1k"


def tower(**changes) -> ImageTower:
    return ImageTower(ImageTowerConfig(name=NAME, weights="none", image_size=32, **changes))


def test_frozen_batch_norm_equals_the_original() -> None:
    case = golden("model")["frozen_bn"]
    norm = torch.nn.BatchNorm2d(2, eps=case["eps"])
    values = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    norm.load_state_dict({k: torch.tensor(case[v]) for k, v in values.items()}, strict=False)
    frozen = freeze_batch_norm_2d(norm)
    y = frozen(torch.tensor(case["x"]).reshape(1, 2, 1, 1)).reshape(-1)
    torch.testing.assert_close(y, torch.tensor(case["y"]), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_resnext_has_the_originals_sizes() -> None:
    case = golden("model")["resnext101_32x8d"]
    with torch.device("meta"):
        backbone = timm.create_model("resnext101_32x8d")
        assert sum(p.numel() for p in backbone.parameters()) == case["params_incl_fc"]
        assert backbone.num_features == case["fc_in"]
        backbone.reset_classifier(0)
        convolutions = sum(p.numel() for p in backbone.parameters() if p.ndim > 1)
        assert convolutions == case["params_no_fc_after_frozen_bn"]
        stem = ("conv1", "layer1")
        trained = sum(p.numel() for n, p in backbone.named_parameters() if p.ndim > 1 and n.split(".")[0] not in stem)
        assert trained == case["trainable_when_visn_finetune"]


def test_every_batch_norm_is_frozen_and_the_stem_stays_frozen_when_fine_tuning() -> None:
    fine = tower(trainable="all_but_stem").train()
    assert any("Frozen" in type(m).__name__ for m in fine.modules())
    assert not any(type(m) is torch.nn.BatchNorm2d for m in fine.modules())
    learning = {n.split(".")[1] for n, p in fine.named_parameters() if p.requires_grad}
    assert "layer4" in learning
    assert not learning & {"conv1", "layer1"}


def test_stages_are_added_after_the_final_features() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32)
    plain, staged = tower(), tower(stages=2)
    staged.backbone.load_state_dict(plain.backbone.state_dict())
    final, more = plain(pixels), staged(pixels)
    assert more.shape == (2, staged.width)
    torch.testing.assert_close(more[:, : plain.width], final)
    assert staged.width > plain.width


def test_a_frozen_tower_keeps_no_gradient() -> None:
    assert not tower()(torch.randn(1, 3, 32, 32)).requires_grad
    assert tower(trainable="all")(torch.randn(1, 3, 32, 32)).requires_grad


def test_weights_load_from_a_file_in_half_precision_without_the_classifier(tmp_path: Path) -> None:
    backbone = timm.create_model(NAME, pretrained=False)
    path = tmp_path / "w.pth"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in backbone.state_dict().items()}, path)
    loaded = ImageTower(ImageTowerConfig(name=NAME, weights=str(path), image_size=32))
    first = next(iter(loaded.backbone.parameters()))
    torch.testing.assert_close(first, next(iter(backbone.parameters())), atol=1e-3, rtol=1e-2)
    torch.save({"nonsense": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"w\.pth.*missing.*unexpected.*nonsense"):
        ImageTower(ImageTowerConfig(name=NAME, weights=str(path)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ImageTowerConfig(name="no_such_net", weights="none"), "timm model"),
        (ImageTowerConfig(name=NAME, weights="/no/file.pth"), "do not exist"),
    ],
)
def test_unknown_towers_are_refused(config: ImageTowerConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageTower(config)


@pytest.mark.parametrize(("text", "indices"), golden("naming")["lang_layers_parse"].items())
def test_layer_strings_read_as_the_original_reads_them(text: str, indices: list[int]) -> None:
    assert list(parse_lang_layers(text, original=True)) == indices
    if text == "-1":
        with pytest.raises(InputError, match="Write 1"):
            parse_lang_layers(text)


def test_layers_are_concatenated_oldest_first() -> None:
    torch.manual_seed(0)
    both = TextTower(tiny_config().text, vocab_size=33).eval()
    ids = torch.tensor([[2, 5, 3]])
    states = both.backbone(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(both(ids, torch.ones_like(ids)), torch.cat(states[-2:], -1))


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="more than the 2 layers"):
        TextTower(TextTowerConfig(name=None, num_layers=2, layers=(3,), hidden_size=16, num_heads=2))
    with pytest.raises(InputError, match="counts from the last"):
        TextTowerConfig(layers=(0,))
    with pytest.raises(InputError, match="no/such"):
        TextTower(TextTowerConfig(name="no/such"))
