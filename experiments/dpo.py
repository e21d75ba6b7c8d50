"""Direct preference optimisation: a policy from preference pairs, without reward model or samples.

The plainest form of Rafailov et al. 2023: a loop over pairs, with the parts of train_rm.py.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import train_rm
from rlhf_min.data import preferences
from rlhf_min.data.order import batch_indices
from rlhf_min.hardware.optimiser import MasterAdamW, warm_up_and_down
from rlhf_min.models import loading
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.layout import context_length
from rlhf_min.models.log_probs import answer_log_probs


def dpo_loss(log_probs: Tensor, ref_log_probs: Tensor, beta: float) -> Tensor:
    """−log σ(r_w − r_l), r = β·log[π(y|x)/π_ref(y|x)], mean over pairs (Rafailov et al. 2023).

    log_probs, ref_log_probs: of chosen and rejected answers [N, 2]; beta per nat → scalar in nats.
    """
    rewards = beta * (log_probs - ref_log_probs.detach())
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()


def train(start: Path, beta: float, seed: int, lr: float, limit: int = 0, batch_size: int = 32):
    """(policy, loss) after one epoch of DPO on the pairs that train_rm.py learns from.

    start: folder of the start model, which is also the reference; limit: pairs at most (0: all);
    loss: mean over the last quarter of the steps, in nats (chance: 0.693).
    """
    config = train_rm.Config(model=str(start), limit=limit, seed=seed)
    tokenizer = loading.load_tokenizer(config.model)
    policy, reference = (loading.load_causal_lm(config.model, torch.float32) for _ in range(2))
    pairs = train_rm.read_pairs(config)[0]
    pairs, _ = preferences.encode_pairs(tokenizer, pairs, context_length(policy), "--data")
    optimiser, steps, losses = MasterAdamW(policy), -(-len(pairs) // batch_size), []
    for step in tqdm(range(steps), f"DPO {beta}"):
        order = batch_indices(len(pairs), batch_size, step, seed, partial=True)
        batch = [pairs[i] for i in order]
        prompts, answers = [pair.prompt for pair in batch], [pair.answers for pair in batch]
        loss_sum = 0.0
        for n, tree in tree_batches(policy, prompts, answers, 16):
            with torch.no_grad():
                ref_log_probs = answer_log_probs(reference, tree).view(-1, 2)  # [n, 2]
            log_probs = answer_log_probs(policy, tree).view(-1, 2)  # [n, 2], gradient
            loss = dpo_loss(log_probs, ref_log_probs, beta) * len(n) / len(batch)
            loss.backward()
            loss_sum += loss.item()
        optimiser.step(lr * warm_up_and_down(step, 0.05, steps), max_grad_norm=1.0)
        losses.append(loss_sum)
    last = losses[-max(1, steps // 4) :]
    return policy, sum(last) / len(last)
