"""A user's own models: decoders that do something with their logits, and flags of their own.

Imported, or copied to the ``__init__.py`` of a user-dir.
"""

import argparse
from dataclasses import dataclass, field

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from fairseq.models.transformer import (
    TransformerDecoder,
    TransformerModel,
    base_architecture,
)
from omegaconf import MISSING
from torch import nn

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - as a user-dir has it

FACTOR = 4.0
SPOILED = 1.5


class Scaled(TransformerDecoder):
    """Multiplies its logits: a temperature."""

    def forward(self, *args, features_only=False, **kwargs):
        x, extra = super().forward(*args, features_only=features_only, **kwargs)
        return (x if features_only else FACTOR * x), extra


class Shifted(TransformerDecoder):
    """Has a bias beside its output layer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shift = nn.Parameter(torch.linspace(-1, 1, self.output_projection.out_features))

    def output_layer(self, features):
        return super().output_layer(features) + self.shift


class Written(TransformerDecoder):
    """Writes to its logits."""

    def output_layer(self, features):
        return super().output_layer(features).mul_(FACTOR)


class Behind(TransformerDecoder):
    """Writes to one word's logits behind the back of torch, which counts other writes."""

    def output_layer(self, features):
        x = super().output_layer(features)
        x.data[..., 5] = SPOILED
        return x


class TwoPass(TransformerDecoder):
    """Calls its output layer twice in training; what it returns is not of the last call."""

    def output_layer(self, features):
        plain = super().output_layer(features)
        if self.training:
            super().output_layer(0.5 * features)
        return plain


class Halved(TransformerDecoder):
    """Changes what goes into its output layer, and not what comes out."""

    def output_layer(self, features):
        return super().output_layer(0.5 * features)


class Normed(TransformerDecoder):
    """Exchanges the weights of its output layer for the time of the call."""

    def output_layer(self, features):
        weight = self.output_projection.weight
        usual = weight.data
        weight.data = nn.functional.normalize(usual)
        x = super().output_layer(features)
        weight.data = usual
        return x


class Copying(TransformerDecoder):
    """Makes a part of its logits of the attention to the source."""

    def forward(self, *args, features_only=False, **kwargs):
        x, extra = super().forward(*args, features_only=True, **kwargs)
        if features_only:
            return x, extra
        return self.output_layer(x) + extra["attn"][0].max(dim=-1, keepdim=True).values, extra


class Verbose(TransformerDecoder):
    """Returns more than others do."""

    def forward(self, *args, **kwargs):
        return *super().forward(*args, **kwargs), {"more": True}


class Wide(TransformerDecoder):
    """Has an output layer of two parts."""

    def build_output_projection(self, args, dictionary, embed_tokens):
        width = self.output_embed_dim
        self.output_projection = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Linear(2 * width, len(dictionary))
        )


DECODERS = [Scaled, Shifted, Written, Behind, TwoPass, Halved, Normed, Copying, Verbose, Wide]


def small(args):
    """Sizes of a model for tests."""
    for side in ("encoder", "decoder"):
        for part, size in (("embed_dim", 16), ("ffn_embed_dim", 32), ("layers", 1)):
            name = f"{side}_{part}"
            setattr(args, name, getattr(args, name, size))
        setattr(args, f"{side}_attention_heads", getattr(args, f"{side}_attention_heads", 2))
    base_architecture(args)


def register(name, model, architecture=small):
    """Register a model, and an architecture of the same name and ``_small``."""
    register_model(name)(model)
    register_model_architecture(name, f"{name}_small")(architecture)


def with_decoder(decoder):
    """Make a model that has this decoder."""

    class Model(TransformerModel):
        @classmethod
        def build_decoder(cls, args, tgt_dict, embed_tokens):
            return decoder(args, tgt_dict, embed_tokens)

    return Model


for one in DECODERS:
    register(one.__name__.lower(), with_decoder(one))


class Tempered(TransformerModel):
    """Has the usual logits, and another loss of them."""

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return super().get_normalized_probs((net_output[0] / FACTOR,), log_probs, sample)


class Marked(TransformerModel):
    """Takes more than others, if it is given."""

    def forward(self, src_tokens, src_lengths, prev_output_tokens, marks=None, **kwargs):
        return super().forward(src_tokens, src_lengths, prev_output_tokens, **kwargs)


class Dictionary(TransformerModel):
    """Returns its logits under a name."""

    def forward(self, *args, **kwargs):
        return {"logits": super().forward(*args, **kwargs)[0]}

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return super().get_normalized_probs((net_output["logits"],), log_probs, sample)


class Flagged(TransformerModel):
    """Has flags that a command line must have."""

    def __init__(self, args, encoder, decoder):
        super().__init__(args, encoder, decoder)
        self.scale, self.profile, self.code = args.my_scale, args.my_profile, args.my_code_path
        self.left, self.set = getattr(args, "left", None), args.my_set

    @staticmethod
    def add_args(parser):
        TransformerModel.add_args(parser)
        parser.add_argument("--my-scale", type=float, required=True)
        # To the plugin, which does not know better, this is the name of a file too.
        parser.add_argument("--my-profile", default="plain")
        parser.add_argument("--my-code-path", required=True)
        sides = parser.add_mutually_exclusive_group(required=True)
        sides.add_argument("--left", type=int)
        sides.add_argument("--right", type=int)

    def forward(self, *args, **kwargs):
        x, extra = super().forward(*args, **kwargs)
        return self.scale * x, extra


def by_flags(args):
    """Ask for flags without a default, and for one that is not the model's."""
    args.encoder_layers = 1 if args.my_scale > 0 and args.task else 2
    args.my_set = getattr(args, "my_set", 7)
    small(args)


register("tempered", Tempered)
register("marked", Marked)
register("dictionary", Dictionary)
register("flagged", Flagged, by_flags)


@dataclass
class DeclaredConfig(FairseqDataclass):
    """Settings as Hydra has them."""

    width: int = field(default=16, metadata={"help": "of all layers"})
    my_scale: float = field(default=MISSING, metadata={"help": "must be there"})


class Declared(BaseFairseqModel):
    """Has its settings in a dataclass, one of them without a default."""

    def __init__(self, scale, model):
        super().__init__()
        self.scale, self.encoder, self.decoder = scale, model.encoder, model.decoder

    @classmethod
    def build_model(cls, cfg, task):
        args = argparse.Namespace(encoder_embed_dim=cfg.width, decoder_embed_dim=cfg.width)
        args.dropout = 0.0
        small(args)
        return cls(cfg.my_scale, TransformerModel.build_model(args, task))

    def forward(self, src_tokens, src_lengths, prev_output_tokens):
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths)
        x, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out)
        return self.scale * x, extra


register_model("declared", dataclass=DeclaredConfig)(Declared)
