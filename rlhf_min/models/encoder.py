"""Encoder classifiers (BERT, DeBERTa) as reward models: one row per answer, a pair of texts."""

import inspect

import torch
from torch import Tensor

from rlhf_min.hardware import ranks
from rlhf_min.models.answers import AnswerTooLongError
from rlhf_min.models.batches import length_batches
from rlhf_min.models.layout import context_length
from rlhf_min.models.tokens import plain_text


def is_encoder(model) -> bool:
    """Whether a classifier is an encoder; decoders have a head `score` on the last token."""
    return not hasattr(model, "score")


@torch.no_grad()
def encoder_outputs(model, tokenizer, prompts: list, texts: list[list[str]]) -> Tensor:
    """Head outputs of answer texts [P][K] to prompts [P] (text or messages): [B, labels] float32.

    A row is what the tokenizer makes of two texts: `[CLS] prompt [SEP] answer [SEP]` in BERT.
    Prompts are cut on the left, answers never: AnswerTooLongError.
    """
    before = [plain_text(prompt) for prompt, own in zip(prompts, texts, strict=True) for _ in own]
    answers = [text for own in texts for text in own]
    # RoBERTa has more position embeddings than positions: only the tokenizer knows.
    context = min(context_length(model), tokenizer.model_max_length)
    longest = max(map(len, tokenizer(answers, add_special_tokens=False).input_ids))
    if longest + tokenizer.num_special_tokens_to_add(pair=True) >= context:
        raise AnswerTooLongError(
            f"an answer of {longest} tokens does not fit the reward model's context of "
            f"{context}: answers are never cut, give shorter ones"
        )
    tokenizer.truncation_side = "left"
    rows = tokenizer(before, answers, truncation="only_first", max_length=context)
    names = inspect.signature(model.forward).parameters.keys() & rows.keys()
    outputs = torch.zeros(len(answers), model.config.num_labels)
    own = ranks.own(len(answers))
    for group in length_batches([len(rows.input_ids[i]) for i in own], 64, 2**14):
        indices = [own[j] for j in group]
        batch = {name: [rows[name][i] for i in indices] for name in names}
        batch = tokenizer.pad(batch, return_tensors="pt").to(model.device)
        outputs[indices] = model(**batch).logits.float().cpu()
    ranks.complete(outputs)
    return outputs.to(model.device)
