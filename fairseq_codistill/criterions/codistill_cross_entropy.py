"""The criterion: cross-entropy plus alpha times the divergence from the peers."""

import math
from dataclasses import dataclass, field
from typing import Any

from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_codistill.codistillation import CHANGES, Codistillation, ConfigError
from fairseq_codistill.criterions import _hidden
from fairseq_codistill.objective import Hidden, fused_cross_entropy
from fairseq_codistill.sentences import errors_as_sentences

CRITERION = "codistill_cross_entropy"


@dataclass
class CodistillCrossEntropyConfig(FairseqDataclass):
    """The criterion's one setting of its own; those of codistillation are the task's."""

    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "epsilon for label smoothing; codistillation regularises without it"},
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

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Give the loss of a batch, the number it is to be divided by, and what is logged.

        Args:
            model: the student.
            sample: a batch of fairseq's language-pair dataset.
            reduce: sum over the tokens (otherwise one loss a token, without codistillation).
        """
        keep = sample["target"] != self.padding_idx
        layer = _hidden.output_layer(model) if model.training else None
        logits: Tensor | None = None
        hidden: Hidden | None = None
        if self.fused and layer is not None and reduce:
            features = model(**sample["net_input"], features_only=True)[0]
            hidden = _hidden.hidden(features[keep], layer)
            smoothed, nll = fused_cross_entropy(
                hidden.rows, hidden.head, sample["target"][keep], self.label_smoothing
            )
        else:
            # What goes into the output layer may be all that the divergence needs.
            with _hidden.watch(layer) as seen:
                net_output = model(**sample["net_input"])
            logits = net_output[0]
            if layer is not None:
                hidden = _hidden.hidden(seen[-1][keep], layer)
            smoothed, nll = self._cross_entropy(model, net_output, sample, reduce)
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
        codistillation: Codistillation | None = self.task.codistillation
        if codistillation is not None:
            divergence = self._divergence(codistillation, logits, hidden, sample, keep)
            if divergence is not None:
                loss = loss + codistillation.weight * divergence
            # The same keys, of the same kinds, on every worker at every step: fairseq sums them.
            live, staleness = divergence is not None, codistillation.staleness
            logging_output |= {
                "codistill_loss": loss.new_zeros(()) if divergence is None else divergence.data,
                "codistill_tokens": sample["ntokens"] if live else 0,
                "codistill_alpha": codistillation.alpha,
                "codistill_peers": len(codistillation.peers),
                "codistill_staleness": staleness or 0.0,
                "codistill_aged": int(staleness is not None),
                "codistill_live": int(live),
                "codistill_stall": codistillation.take_stall() / codistillation.workers.size,
                "codistill_batches": 1,
            }
            # A group's changes are its leader's: the other workers see the same.
            leads = codistillation.workers.leader
            for change, count in codistillation.take_changes().items():
                logging_output[f"codistill_{change}"] = count if leads else 0
        logging_output["loss"] = loss.data
        return loss, sample_size, logging_output

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

    @staticmethod
    def _divergence(
        codistillation: Codistillation,
        logits: Tensor | None,
        hidden: Hidden | None,
        sample: dict[str, Any],
        keep: Tensor,
    ) -> Tensor | None:
        """Give the divergence summed over the target tokens, padding left out.

        Args:
            codistillation: this group's side.
            logits: the student's, (sentences, tokens, V), if they were made.
            hidden: the student's output on the target tokens before its output layer, if it has a
                plain one; one of the two there is.
            sample: the batch.
            keep: which target tokens are none of padding, (sentences, tokens).
        """
        net_input, target = sample["net_input"], sample["target"]
        if hidden is not None:
            classes, width = hidden.head.weight.shape
            takes_hidden = codistillation.takes_hidden(sample["ntokens"], width, classes)
            if takes_hidden or logits is None:
                rows = codistillation.term(
                    hidden, lambda peer: _hidden.of_peer(peer, net_input, keep), target[keep]
                )
                return None if rows is None else rows.sum()
        assert logits is not None
        targets = target.masked_fill(~keep, -1)
        rows = codistillation.term(logits, lambda peer: peer(**net_input)[0], targets)
        return None if rows is None else rows.masked_fill(~keep, 0).sum()

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
        metrics.log_scalar("codistill_peers", total("codistill_peers") / batches, 0, round=1)
        metrics.log_scalar_sum("codistill_stall", total("codistill_stall"), round=3)
        for change in CHANGES:
            metrics.log_scalar_sum(f"codistill_{change}", total(f"codistill_{change}"), round=0)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Whether fairseq may sum the workers' logging outputs; it may."""
        return True
