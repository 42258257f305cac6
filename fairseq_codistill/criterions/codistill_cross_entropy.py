"""The criterion: cross-entropy plus alpha times the divergence from the peers."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_codistill.codistillation import (
    CHANGES,
    Codistillation,
    ConfigError,
    Wants,
    peers_asked,
    staleness_asked,
)
from fairseq_codistill.criterions import _hidden
from fairseq_codistill.criterions._rows import rows_by_settings
from fairseq_codistill.objective import Hidden, fused_cross_entropy
from fairseq_codistill.records import get_logger
from fairseq_codistill.sentences import errors_as_sentences

logger = get_logger(__name__)

CRITERION = "codistill_cross_entropy"


@dataclass
class CodistillCrossEntropyConfig(FairseqDataclass):
    """The criterion's one setting of its own; those of codistillation are the task's."""

    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "epsilon for label smoothing, spread over the other tokens (torch: over all); "
            "codistillation regularises without it"
        },
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion(CRITERION, dataclass=CodistillCrossEntropyConfig)
class CodistillCrossEntropyCriterion(FairseqCriterion):
    """Sum over the target tokens of cross-entropy + alpha * mean over peers and teachers of D.

    Holds none of them: a module inside the criterion would be wrapped for data parallelism and
    saved in every checkpoint.
    """

    def __init__(self, task: Any, label_smoothing: float, sentence_avg: bool) -> None:
        super().__init__(task)
        with errors_as_sentences():
            if not hasattr(task, "codistillation"):
                raise ConfigError(
                    f"--criterion {CRITERION} needs a task that codistils, and this one is "
                    f"{type(task).__name__}; use --task codistill_translation"
                )
            if not 0 <= label_smoothing < 1:
                raise ConfigError(
                    f"--label-smoothing {label_smoothing} is out of range; give 0 or more and "
                    "less than 1"
                )
        self.sentence_avg = sentence_avg
        self.label_smoothing = label_smoothing
        self.fused: bool = task.cfg.codistill_fused_ce
        self._rows = rows_by_settings(task.cfg.max_tokens, task.cfg.batch_size)
        self._of_peer = _hidden.PeerOutputs()
        # Whether the numbers of a forward pass bear out what was seen of it; None before the first.
        self._confirmed: bool | None = None
        self._said = False
        self._wants = Wants.LOGITS

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the loss of a batch, the number it is to be divided by, and what is logged.

        Args:
            model: the student.
            sample: a batch of fairseq's language-pair dataset.
            reduce: sum over the tokens (otherwise one loss a token, without codistillation).
        """
        keep = sample["target"] != self.padding_idx
        codistillation: Codistillation | None = None
        layer: nn.Linear | None = None
        fused = False
        if model.training and reduce:
            codistillation, fused = self.task.codistillation, self.fused
            layer = self._layer_to_watch(codistillation, model)
        with errors_as_sentences():
            seen = self._run(model, sample["net_input"], layer, fused)
            logits: Tensor | None = None
            if codistillation is not None and not fused:
                logits = _hidden.logits_of(model, seen.output, sample["target"])
        asks = codistillation is not None and codistillation.asks
        hidden: Hidden | None = None
        places: tuple[Tensor, ...] = ()
        if (fused or asks) and layer is not None and seen.hidden is not None:
            if self._wants is Wants.BOTH and not fused:
                hidden = _hidden.hidden(seen.hidden.flatten(0, 1), layer, logits)
            else:
                # A GPU is waited for here: only where the rows are needed, and once for all.
                places = keep.nonzero(as_tuple=True)
                hidden = _hidden.hidden(seen.hidden[places], layer)
        if fused:
            assert hidden is not None
            smoothed, nll = fused_cross_entropy(
                hidden.rows, hidden.head, sample["target"][places], self.label_smoothing
            )
        else:
            smoothed, nll = self._cross_entropy(model, seen.output, sample, reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output: dict[str, Any] = {
            "loss": nll.data,
            "nll_loss": nll.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        if not (model.training and reduce):
            return nll, sample_size, logging_output

        loss = smoothed
        if codistillation is not None:
            divergence: Tensor | None = None
            if asks:
                with errors_as_sentences():
                    if hidden is not None and hidden.logits is None:
                        divergence = self._from_hidden(codistillation, hidden, sample, places)
                    else:
                        divergence = self._from_all(codistillation, logits, hidden, sample, keep)
            if divergence is not None:
                loss = loss + codistillation.weight * divergence
            # The same keys, of the same kinds, on every worker at every step: fairseq sums them.
            live = divergence is not None
            peers, staleness = peers_asked(codistillation), staleness_asked(codistillation)
            logging_output |= {
                "codistill_loss": loss.new_zeros(()) if divergence is None else divergence.data,
                "codistill_tokens": sample["ntokens"] if live else 0,
                "codistill_alpha": codistillation.alpha,
                "codistill_peers": peers or 0,
                "codistill_asks": int(peers is not None),
                "codistill_staleness": staleness or 0.0,
                "codistill_aged": int(staleness is not None),
                "codistill_live": int(live),
                "codistill_stall": codistillation.stall,
                "codistill_batches": 1,
            }
            # What is not logged yet, once more in each batch, of which any may come to nothing:
            # ``reduce_metrics`` takes the mean, and then the task notes that it is logged.  A
            # group's changes are its leader's: the other workers see the same.
            leads = int(codistillation.workers.leader)
            logging_output["codistill_leads"] = leads
            for change, count in codistillation.changes.items():
                logging_output[f"codistill_{change}"] = leads * count
        logging_output["loss"] = loss.data
        return loss, sample_size, logging_output

    def _layer_to_watch(
        self, codistillation: Codistillation | None, model: nn.Module
    ) -> nn.Linear | None:
        """Return the model's output layer if what goes into it may be all that is needed."""
        layer = _hidden.output_layer(model)
        if layer is None or self._confirmed is False:
            return None
        self._wants = Wants.LOGITS
        if codistillation is not None:
            weight = layer.weight
            self._wants = codistillation.wants(
                self._rows,
                layer.in_features,
                layer.out_features,
                # fairseq's autocast is CUDA's alone.
                half=(self.task.cfg.amp and weight.is_cuda)
                or weight.dtype in (torch.float16, torch.bfloat16),
                on_gpu=weight.is_cuda,
            )
        return layer if self.fused or self._wants is not Wants.LOGITS else None

    def _run(
        self, model: nn.Module, net_input: dict[str, Any], layer: nn.Linear | None, fused: bool
    ) -> _hidden.Seen:
        """Run the student.

        Args:
            model: it.
            net_input: of the batch.
            layer: from ``_layer_to_watch``.
            fused: make no logits.

        Raises:
            ConfigError: if a flag cannot be honoured with this model.
        """
        seen = _hidden.run(model, net_input, layer, logits=not fused)
        if seen.hidden is not None and self._confirmed is None:
            assert layer is not None
            self._confirmed = _hidden.confirmed(seen, layer, logits=not fused)
            if not self._confirmed:
                seen = _hidden.Seen(seen.output)
        if seen.hidden is None and (fused or layer is not None):
            self._not_plain(model, fused)
        return seen

    def _not_plain(self, model: nn.Module, fused: bool) -> None:
        """Go on in the naive form, unless the user has asked for another.

        Raises:
            ConfigError: if a flag cannot be honoured.
        """
        why = (
            f"the logits of the model ({type(_hidden.bare(model)).__name__}) are not its output "
            "layer's alone: it changes them, or calls the layer more than once"
        )
        if fused:
            raise ConfigError(f"--codistill-fused-ce: {why}; leave the flag out")
        if self.task.cfg.codistill_head != "auto":
            raise ConfigError(
                f"--codistill-head {self.task.cfg.codistill_head}: {why}; give naive, or leave it "
                "out"
            )
        if not self._said:
            self._said = True
            logger.info("%s; the divergence is computed in the naive form all the same", why)

    def _cross_entropy(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool
    ) -> tuple[Tensor, Tensor]:
        """Give the smoothed and the plain loss; with no smoothing they are one tensor."""
        log_probs = model.get_normalized_probs(net_output, log_probs=True)
        log_probs = log_probs.view(-1, log_probs.size(-1))
        target = model.get_targets(sample, net_output).view(-1)
        if self.label_smoothing > 0 and model.training:
            return label_smoothed_nll_loss(
                log_probs,
                target,
                self.label_smoothing,
                ignore_index=self.padding_idx,
                reduce=reduce,
            )
        nll = F.nll_loss(
            log_probs,
            target,
            ignore_index=self.padding_idx,
            reduction="sum" if reduce else "none",
        )
        return nll, nll

    def _from_hidden(
        self,
        codistillation: Codistillation,
        hidden: Hidden,
        sample: dict[str, Any],
        places: tuple[Tensor, ...],
    ) -> Tensor | None:
        """Return the divergence summed over the target tokens, padding left out.

        Args:
            codistillation: this group's side.
            hidden: the student's output on the target tokens before its output layer.
            sample: the batch.
            places: of the target tokens that are none of padding, one tensor a dimension.
        """
        net_input, target = sample["net_input"], sample["target"]
        rows = codistillation.term(
            hidden, lambda peer: self._of_peer(peer, net_input, target, places), target[places]
        )
        return None if rows is None else rows.sum()

    def _from_all(
        self,
        codistillation: Codistillation,
        logits: Tensor | None,
        hidden: Hidden | None,
        sample: dict[str, Any],
        keep: Tensor,
    ) -> Tensor | None:
        """Return the divergence summed over the target tokens, padding left out.

        Args:
            codistillation: this group's side.
            logits: the student's, (sentences, tokens, V), if they were made.
            hidden: the student's output before its output layer with these logits, if both are
                wanted; one of the two is there.
            sample: the batch.
            keep: which target tokens are none of padding, (sentences, tokens).
        """
        net_input, target = sample["net_input"], sample["target"]
        # Of all tokens: nothing has to be copied, and no GPU waited for.
        targets = target.masked_fill(~keep, -1)
        if hidden is not None:
            rows = codistillation.term(
                hidden, lambda peer: self._of_peer(peer, net_input, target), targets.flatten()
            )
        else:
            assert logits is not None
            rows = codistillation.term(
                logits, lambda peer: _hidden.logits_of(peer, peer(**net_input), target), targets
            )
        return None if rows is None else rows.masked_fill(~keep.view_as(rows), 0).sum()

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the workers' and micro-batches' losses as means, the NLL to base 2."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        ntokens, sample_size = total("ntokens"), total("sample_size")
        metrics.log_scalar("loss", total("loss") / sample_size / math.log(2), sample_size, round=3)
        metrics.log_scalar("nll_loss", total("nll_loss") / ntokens / math.log(2), ntokens, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))

        batches = total("codistill_batches")
        if not batches > 0:
            return
        if total("codistill_live") > 0:
            tokens = total("codistill_tokens")
            metrics.log_scalar("codistill_loss", total("codistill_loss") / tokens, tokens, round=4)
        if total("codistill_aged") > 0:
            staleness = total("codistill_staleness") / total("codistill_aged")
            metrics.log_scalar("codistill_staleness", staleness, round=1)
        # Weight 0: a meter then shows the newest value, not a mean over the log interval.  Large
        # gammas begin with alphas of which fewer digits would leave nothing.
        metrics.log_scalar("codistill_alpha", total("codistill_alpha") / batches, 0, round=12)
        if total("codistill_asks") > 0:
            peers = total("codistill_peers") / total("codistill_asks")
            metrics.log_scalar("codistill_peers", peers, 0, round=1)
        # None where the leader had no batch at the end of an epoch: the next update has them.
        leads = total("codistill_leads")
        if leads > 0:
            metrics.log_scalar_sum("codistill_stall", total("codistill_stall") / batches, round=3)
            for change in CHANGES:
                count = total(f"codistill_{change}") / leads
                metrics.log_scalar_sum(f"codistill_{change}", count, round=0)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Whether fairseq may sum the workers' logging outputs; it may."""
        return True
