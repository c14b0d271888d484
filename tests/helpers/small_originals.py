"""Tiny models in the shapes of the originals, made of plain torch and transformers."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torchvision
from torch import nn
from transformers import BertConfig, BertModel


def tiny_bert(vocab_size: int, layers: int = 4) -> BertModel:
    """A BERT with its pooler, as the originals made it."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=1,
        intermediate_size=96,
        max_position_embeddings=40,
    )
    return BertModel(config).eval()


def shaken(module: nn.Module) -> nn.Module:
    """BatchNorms with statistics as after training, so that mistakes in them show."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(part.weight, 0.8, 1.2)
            nn.init.uniform_(part.bias, -0.1, 0.1)
    return module.eval()


class MariaStack(nn.Module):
    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        sizes = (width, hidden, hidden, dim)
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False))

    def forward(self, x):
        return self.linears[2](self.linears[1](self.linears[0](x).relu()).relu())


class Half(nn.Module):
    def __init__(self, backbone: nn.Module, width: int, kind: str) -> None:
        super().__init__()
        self.backbone = backbone
        plain = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8))
        self.mlp = MariaStack(width, 12, 8) if kind == "maria" else plain


class Matcher(nn.Module):
    """Vokenization's joint model on a ResNet-18, without its BatchNorms' counters."""

    def __init__(self, vocab_size: int, kind: str, text: nn.Module | None = None) -> None:
        super().__init__()
        self.kind = kind
        trunk = torchvision.models.resnet18()
        trunk.fc = nn.Identity()
        self.lang_model = Half(text or tiny_bert(vocab_size), 256, kind)
        self.visn_model = Half(shaken(trunk), 512, kind)
        self.eval()

    def texts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.lang_model.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        features = torch.cat([states[i] for i in (-4, -3, -2, -1)], -1)
        out = self.lang_model.mlp(features[:, 0] if self.kind == "maria" else features)
        return out / out.norm(dim=-1, keepdim=True)

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        out = self.visn_model.mlp(self.visn_model.backbone(pixels))
        return out / out.norm(dim=-1, keepdim=True)

    def saved(self) -> dict[str, torch.Tensor]:
        state = {k: v for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}
        if not isinstance(self.lang_model.backbone, BertModel):
            return state
        return state | {"lang_model.backbone.embeddings.position_ids": torch.arange(40)[None]}


class Gpo(nn.Module):
    """Generalized pooling, set by set, from its formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(32, 32, 1, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(32, 1, bias=False)

    def forward(self, sets: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        rows = []
        for members, n in zip(sets, lengths, strict=True):
            rates = [10000 ** (-2 * (j // 2) / 32) for j in range(32)]
            code = [[(math.cos if j % 2 else math.sin)(k * rates[j]) for j in range(32)] for k in range(n)]
            states = self.gru(torch.tensor(code)[None])[0][0]
            weights = (self.linear((states[:, :32] + states[:, 32:]) / 2)[:, 0] / 0.1).softmax(0)
            rows.append((weights[:, None] * members[:n].sort(0, descending=True).values).sum(0))
        out = torch.stack(rows)
        return out / (out.norm(dim=-1, keepdim=True) + 1e-8)


class Perceptron(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, dim // 2), nn.Linear(dim // 2, dim)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(dim // 2), nn.BatchNorm1d(dim)])

    def forward(self, x):
        hidden = self.bns[0](self.layers[0](x).flatten(0, 1)).relu()
        return self.layers[1](hidden).unflatten(0, x.shape[:2])


class Regions(nn.Module):
    def __init__(self, width: int, dim: int, mlp: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(width, dim)
        if mlp:
            self.mlp = Perceptron(width, dim)
        self.gpool = Gpo()

    def forward(self, x, lengths):
        projected = self.fc(x)
        return self.gpool(projected + self.mlp(x) if hasattr(self, "mlp") else projected, lengths)


class Trunk(nn.Module):
    """A ResNet-50 in Caffe's geometry: by name, and by position."""

    def __init__(self) -> None:
        super().__init__()
        net = self.resnet = torchvision.models.resnet50()
        net.maxpool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)
        for stage in (net.layer2, net.layer3, net.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        self.base = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
        self.top = nn.Sequential(net.layer4)

    def forward(self, x):
        return self.top(self.base(x)).flatten(2).transpose(1, 2)


class Grid(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.image_encoder = Regions(2048, dim, mlp=False)

    def forward(self, x, lengths=None):
        cells = self.backbone(x)
        return self.image_encoder(cells, [cells.shape[1]] * len(cells))


class BertText(nn.Module):
    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.bert, self.linear, self.gpool = tiny_bert(vocab_size, 2), nn.Linear(64, dim), Gpo()

    def forward(self, ids, lengths):
        return self.gpool(self.linear(self.bert(ids, (ids != 0).float())[0]), lengths)


class GruText(nn.Module):
    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embed, self.gpool = nn.Embedding(vocab_size, 10), Gpo()
        self.rnn = nn.GRU(10, dim, 1, batch_first=True, bidirectional=True)

    def forward(self, ids, lengths):
        states = torch.zeros(*ids.shape, self.rnn.hidden_size)
        for row, n in enumerate(lengths):
            both = self.rnn(self.embed(ids[row : row + 1, :n]))[0][0]
            states[row, :n] = (both[:, : self.rnn.hidden_size] + both[:, self.rnn.hidden_size :]) / 2
        return self.gpool(states, lengths)


class OpenAiBlock(nn.Module):
    """A block of OpenAI's transformer, attention written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.heads = nn.MultiheadAttention(width, width // 64), width // 64
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.Identity(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, causal: bool):
        joint = nn.functional.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.heads, 64)).transpose(1, 2) for part in joint.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / 8
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
        x = x + self.attn.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        hidden = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(hidden * (1.702 * hidden).sigmoid())


class OpenAiTransformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(OpenAiBlock(width) for _ in range(layers)))

    def forward(self, x, causal: bool = False):
        for block in self.resblocks:
            x = block(x, causal)
        return x


class OpenAiVision(nn.Module):
    def __init__(self, width: int, patch: int, cells: int, dim: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) / 8)
        self.positional_embedding = nn.Parameter(torch.randn(cells + 1, width) / 8)
        self.proj = nn.Parameter(torch.randn(width, dim) / 8)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = OpenAiTransformer(width, 2)

    def forward(self, pixels):
        cells = self.conv1(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(len(cells), 1, -1)
        x = self.transformer(self.ln_pre(torch.cat([start, cells], 1) + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenAiClip(nn.Module):
    """OpenAI's CLIP with a vision transformer: 16 pixels, patches of 8; also AGREE's."""

    def __init__(self, vocab_size: int, context: int = 12, dim: int = 10) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(context, 64) / 8)
        self.text_projection = nn.Parameter(torch.randn(64, dim) / 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.visual = OpenAiVision(128, 8, 4, dim)
        self.transformer = OpenAiTransformer(64, 2)
        self.token_embedding, self.ln_final = nn.Embedding(vocab_size, 64), nn.LayerNorm(64)
        for parameter in self.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        self.eval()

    def texts(self, ids: torch.Tensor) -> torch.Tensor:
        """Unit rows; a text ends at its highest id."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        ends = self.ln_final(self.transformer(x, causal=True))[torch.arange(len(ids)), ids.argmax(1)]
        return nn.functional.normalize(ends @ self.text_projection, dim=-1)

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.visual(pixels), dim=-1)

    def saved_in_half(self) -> dict[str, torch.Tensor]:
        """The state as OpenAI gives it out: linear and convolutional weights and projections halved, with sizes."""
        halved = {"visual.proj", "text_projection"}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                halved |= {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        state = {k: v.half() if k in halved else v for k, v in self.state_dict().items()}
        sizes = {"input_resolution": 16, "context_length": len(self.positional_embedding), "vocab_size": 40}
        return state | {name: torch.tensor(size) for name, size in sizes.items()}
