"""Average the weights of models that were trained from one start model (WARM: Ramé et al. 2024).

    python -m rlhf_min.average runs/rm-0 runs/rm-1 runs/rm-2 --out runs/rm-average

Reward models or policies.  All must share their start model: they are refused if run.json names two
or if their weights are unlike, which is all that can be checked.  The result is an ordinary folder.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from rlhf_min import InputError
from rlhf_min.command_line import check_ranges, option, run
from rlhf_min.data.files import read_json
from rlhf_min.models import adapter_folder, loading
from rlhf_min.models.reward_model import load_reward_model
from rlhf_min.reporting.folder_files import LOCK, locked


@dataclass(frozen=True)
class Config:
    """Settings of rlhf_min.average."""

    usage = "python -m rlhf_min.average DIR DIR [DIR ...] --out DIR"
    models: list[str] = option([], "folders to average, with one start model (flag not needed)")
    out: str = option("runs/average", "folder of the average: absent or empty")

    @staticmethod
    def from_words(words: list[str], settings: dict) -> dict:
        return {"models": [*settings["models"], *words]}


def load(path: str) -> tuple:
    """Model in its own dtype, its tokenizer, and what must be equal in all models."""
    if adapter_folder.read_adapter(path):
        raise InputError(f"{path} holds adapters only: give the folder in which they are merged")
    config = loading.from_hub(AutoConfig, path, "config")
    head = config.num_labels if "ForSequenceClassification" in str(config.architectures) else 0
    model = (load_reward_model if head else loading.load_causal_lm)(path, config.dtype)
    tokenizer = loading.load_tokenizer(path, needs_end=False)
    facts = {"architecture": config.model_type, "head": head, "dtype": model.dtype}
    facts["shapes of weights"] = {name: w.shape for name, w in model.named_parameters()}
    facts["tokenizer"] = tokenizer.get_vocab(), tokenizer.chat_template
    trained = read_json(Path(path) / "run.json").get("config") or {}
    if start := trained.get("reference") or trained.get("model"):  # reference: of a policy
        facts["start model"] = str(Path(start).resolve()) if Path(start).exists() else start
    return model, tokenizer, facts


def cosine(model, other) -> float:
    """The cosine of two models' weight matrices, all taken as one vector."""
    dots = torch.zeros(3, dtype=torch.float64)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        if a.dim() > 1:  # vectors of norms are near 1 in all models
            a, b = a.double(), b.double()
            dots += torch.stack([(x * y).sum().cpu() for x, y in ((a, b), (a, a), (b, b))])
    return (dots[0] / (dots[1] * dots[2]).sqrt()).item()


@torch.no_grad()
def main(config: Config) -> None:
    """Average the models in float64, each loaded in turn, and write the folder."""
    check_ranges(config)
    if len(config.models) < 2:
        raise InputError(f"give two or more folders to average, got {len(config.models)}")
    with locked(config.out):
        if any(path.name != LOCK for path in Path(config.out).iterdir()):
            raise InputError(f"--out {config.out} holds files: give an absent or empty folder")
        first, tokenizer, facts = load(config.models[0])
        sums = [weight.double() for weight in first.parameters()]
        for path in config.models[1:]:
            model, _, others = load(path)
            both = f"{path} and the models before it"
            if differ := [n for n in facts if n in others and facts[n] != others[n]]:
                raise InputError(f"{both} differ in their {differ[0]}, so they have no average")
            if cosine(first, model) < 0.5:  # about 0 for unrelated models
                raise InputError(f"{both} have unlike weights, so they have other start models")
            facts |= others  # the first may lack a run.json
            sums = [a + b for a, b in zip(sums, model.parameters(), strict=True)]
        for weight, total in zip(first.parameters(), sums, strict=True):
            weight.copy_(total / len(config.models))  # rounded once, to the model's dtype
        loading.save_model(first, tokenizer, config.out)
    print(f"{config.out}: the average of {len(config.models)} models")


if __name__ == "__main__":
    run(main, Config)
