"""Models that other people made: no code of theirs is run, and what cannot work is one sentence."""

import json
import math
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_input import assert_one_sentence, contents
from test_reward_model import trained_folder
from tiny_models import (
    loop_answer_log_probs,
    tiny_folder,
    tiny_model,
    tiny_pairs,
    tiny_tokenizer,
    write_rows,
)
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    PreTrainedTokenizerFast,
    XLNetConfig,
)

import judge
import train_policy
import train_rm
from rlhf_min import InputError, command_line
from rlhf_min.models import loading
from rlhf_min.models.loading import load_causal_lm, load_tokenizer, save_model
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.reward_model import load_reward_model, new_reward_model
from rlhf_min.models.sampling import sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import encode_prompt
from rlhf_min.reporting import report

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Write no report: it takes longer than these runs."""
    monkeypatch.setattr(report, "write_report", lambda out: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A language model `base`, a reward model `rm`, pairs and prompts."""
    place = tmp_path_factory.mktemp("foreign")
    base = tiny_folder(place / "base", "smol")
    trained_folder(base, place / "rm", "scalar")
    write_rows(place / "pairs.jsonl", tiny_pairs(8))
    write_rows(place / "held.jsonl", tiny_pairs(3, "frog"))
    return place


def line_of(script, place: Path, out: Path, words: str = "") -> list[str]:
    """A short command line of a script on the files of `place`; later words replace earlier."""
    train = "--data pairs.jsonl --eval-data held.jsonl --model base --batch-size 4"
    line = {
        train_rm: f"{train} --max-steps 2",
        train_policy: f"{train} --reward-model rm --samples 2 --steps 2 --max-new-tokens 5",
        judge: f"--a base --b base --judge reward-model:{place / 'rm'} --data held.jsonl "
        "--max-new-tokens 5",
    }[script]
    flags = {}
    for piece in f" {line} --out {out} {words}".split(" --")[1:]:
        name, *values = piece.split()
        flags[name] = values
    return [
        word
        for name, values in flags.items()
        for word in (
            f"--{name}",
            *(str(place / v) if (place / v).exists() else v for v in values),
        )
    ]


def sentence_of(script, place: Path, tmp_path: Path, words: str, capfd) -> str:
    """The one sentence with which a script refuses these settings; nothing else is written."""
    before = contents(place)
    with pytest.raises(SystemExit) as stop:
        line = line_of(script, place, tmp_path / "out", words)
        command_line.run(script.main, script.Config, line)
    errors = capfd.readouterr().err.splitlines(keepends=True)[-1]
    assert_one_sentence(stop.value.code, errors, [])
    assert contents(place) == before and not (tmp_path / "out").exists()
    return errors


# Code and pickled weights in a model's folder.

ATTACK = """
from pathlib import Path
Path(__file__).with_name("MARKER").write_text("the code was run")
Path({marker!r}).write_text("the code was run")
from transformers import LlamaConfig as C, LlamaForCausalLM as M
from transformers import LlamaForSequenceClassification as S
from transformers import PreTrainedTokenizerFast as T
"""


def hostile(folder: Path, marker: Path, model_type: str) -> Path:
    """A folder whose files ask for its own code, of a type that transformers has or has not."""
    tiny_folder(folder, "smol")
    (folder / "own.py").write_text(ATTACK.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "own.C",
        "AutoModelForCausalLM": "own.M",
        "AutoModelForSequenceClassification": "own.S",
    }
    config["model_type"] = model_type
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": [None, "own.T"]}}
    if model_type != "llama":
        settings["tokenizer_class"] = "OwnTokenizer"
    file.write_text(json.dumps(settings))
    return folder


def answer_yes(line: list[str]) -> tuple[int, str]:
    """Run a command on a terminal on which somebody types "y" again and again: code and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *line], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT
    )
    os.close(theirs)
    os.write(ours, b"y\n" * 20)
    output = b""
    while True:
        try:
            piece = os.read(ours, 2**16)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        output += piece
    os.close(ours)
    return process.wait(timeout=120), output.decode()


@pytest.mark.parametrize("script", [train_rm, train_policy, judge])
def test_the_code_in_a_model_folder_never_runs_even_where_somebody_answers_y(
    place, tmp_path, script
):
    folder = hostile(tmp_path / "theirs", tmp_path / "MARKER", "own-type")
    flag = "--b" if script is judge else "--model"
    line = line_of(script, place, tmp_path / "out", f"{flag} {folder}")
    code, output = answer_yes([str(ROOT / f"{script.__name__}.py"), *line])
    assert code == 2 and "its own code" in output.splitlines()[-1], output
    assert not list(tmp_path.rglob("MARKER"))


@pytest.mark.parametrize("kind", ["own-type", "llama"])
def test_no_loader_runs_code(tmp_path, monkeypatch, kind):
    """A type that transformers has is loaded by transformers' own code."""
    monkeypatch.setattr("builtins.input", lambda *text: "y")
    folder = str(hostile(tmp_path / "theirs", tmp_path / "MARKER", kind))
    loaders = [load_tokenizer]
    loaders += [lambda path: load_causal_lm(path, torch.float32)]
    loaders += [lambda path: new_reward_model(path, "scalar", torch.float32)]
    loaders += [lambda path: load_reward_model(path, torch.float32)]
    for load in loaders:
        try:
            load(folder)
        except InputError as error:
            assert ("its own code" in str(error)) == (kind == "own-type") or "head" in str(error)
        else:
            assert kind == "llama"
    assert not list(tmp_path.rglob("MARKER"))


class Attack:
    """An object whose pickled form writes a file when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "the code was run")


@pytest.mark.parametrize("weights", ["hostile", "harmless"])
def test_pickled_weights_are_not_loaded_and_the_sentence_says_how_to_convert(
    place, tmp_path, weights, capfd
):
    folder = tiny_folder(tmp_path / "theirs", "smol")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "MARKER"
    torch.save(Attack(marker) if weights == "hostile" else state, folder / "pytorch_model.bin")
    for script in (train_rm, train_policy):
        error = sentence_of(script, place, tmp_path, f"--model {folder}", capfd)
        assert "pickle" in error and "safetensors" in error and "save_pretrained" in error
    assert not marker.exists()


# Weights.


def change_weights(folder: Path, change) -> Path:
    """Rewrite model.safetensors with `change`, which takes and changes the weights by name."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("head", ["scalar", "ratings"])
def test_a_tied_weight_stored_as_the_output_layer_is_complete_for_a_reward_model(tmp_path, head):
    folder = tiny_folder(tmp_path / "m", "smol", tie_word_embeddings=True)
    usual = new_reward_model(str(folder), head, torch.float32)
    name = "model.embed_tokens.weight"
    change_weights(folder, lambda w: w.update({"lm_head.weight": w.pop(name)}))
    other = new_reward_model(str(folder), head, torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    for model in (usual, other):
        torch.nn.init.ones_(model.score.weight)
    assert_close(other(ids).logits, usual(ids).logits, rtol=0, atol=0)
    other.base_model(ids).last_hidden_state.sum().backward()
    assert other.get_input_embeddings().weight.grad.any()
    load_causal_lm(str(folder), torch.float32)


def test_an_untied_checkpoint_without_its_embeddings_stays_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m", "smol", tie_word_embeddings=False)
    change_weights(folder, lambda w: w.pop("model.embed_tokens.weight"))
    with pytest.raises(InputError, match=r"lacks the weight model\.embed_tokens\.weight"):
        new_reward_model(str(folder), "scalar", torch.float32)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("script", [train_rm, train_policy, judge])
def test_weights_that_are_no_numbers_are_named_when_a_model_is_loaded(
    place, tmp_path, script, number, capfd
):
    folder = tiny_folder(tmp_path / "theirs", "smol")
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda w: w[name][3, 5].fill_(number))
    flag = "--b" if script is judge else "--model"
    error = sentence_of(script, place, tmp_path, f"{flag} {folder}", capfd)
    assert "theirs has weights that are not finite" in error and name in error


def test_a_reward_model_with_weights_that_are_no_numbers_is_named(place, tmp_path, capfd):
    folder = trained_folder(place / "base", tmp_path / "theirs", "scalar")
    change_weights(folder, lambda w: w["score.weight"][0, 3].fill_(float("nan")))
    error = sentence_of(train_policy, place, tmp_path, f"--reward-model {folder}", capfd)
    assert "theirs has weights that are not finite" in error and "score.weight" in error


# Tokenizers.

NO_SYSTEM = (  # as of Gemma and of Mistral's first models
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize("script", [train_rm, train_policy, judge])
def test_a_chat_template_that_refuses_a_prompt_is_one_sentence_with_its_own_words(
    place, tmp_path, script, capfd
):
    folder = tiny_folder(tmp_path / "theirs", "smol")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained(folder)
    rows = tiny_pairs(12)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a yak?"}]
    rows[3]["prompt"] = turns
    data = write_rows(tmp_path / "turns.jsonl", rows)
    flags = f"--a {folder} --b {folder}" if script is judge else f"--model {folder}"
    error = sentence_of(script, place, tmp_path, f"{flags} --data {data}", capfd)
    assert "System role not supported" in error and "Be brief." in error and "template" in error


def test_a_reward_model_s_template_that_refuses_is_one_sentence(place, tmp_path, capfd):
    folder = trained_folder(place / "base", tmp_path / "theirs", "scalar")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = "{{ raise_exception('no turns, please') }}"
    tokenizer.save_pretrained(folder)
    error = sentence_of(train_policy, place, tmp_path, f"--reward-model {folder}", capfd)
    assert "no turns, please" in error


@pytest.mark.parametrize("other", ["chatml", "larger"])
def test_a_reference_with_other_tokens_is_refused(place, tmp_path, other, capfd):
    folder = tiny_folder(tmp_path / "theirs", "chatml" if other == "chatml" else "smol")
    if other == "larger":
        tokenizer = load_tokenizer(str(folder))
        tokenizer.add_tokens(["honeycomb"])
        tokenizer.save_pretrained(folder)
    error = sentence_of(train_policy, place, tmp_path, f"--reference {folder}", capfd)
    assert "--reference" in error and "tokenizer" in error


def test_a_reference_with_fewer_embeddings_than_the_policy_is_refused(place, tmp_path, capfd):
    """The policy can then sample a token that the reference has no number for."""
    folder = tiny_folder(tmp_path / "padded", "smol", vocabulary=512)
    error = sentence_of(
        train_policy, place, tmp_path, f"--model {folder} --reference {place / 'base'}", capfd
    )
    assert "--reference" in error and "512" in error


def test_a_reference_with_the_same_tokenizer_works(place, tmp_path):
    other = tiny_folder(tmp_path / "other", "smol", seed=1)
    line = line_of(train_policy, place, tmp_path / "out", f"--reference {other}")
    assert command_line.run(train_policy.main, train_policy.Config, line) == 0


# Limits.


def test_a_limit_that_is_the_model_s_context_is_called_so(place, tmp_path, capfd):
    rows = [row | {"chosen": "honey " * 90} for row in tiny_pairs(8)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    error = sentence_of(train_rm, place, tmp_path, f"--data {data}", capfd)
    assert "context" in error and "128" in error and "--max-length" not in error
    error = sentence_of(train_rm, place, tmp_path, f"--data {data} --max-length 99", capfd)
    assert "--max-length of 99" in error


@pytest.mark.parametrize("most", [False, True])
def test_dropped_pairs_name_the_limit_that_dropped_them(place, tmp_path, capsys, most):
    rows = tiny_pairs(8)
    rows[2]["chosen"] = "honey " * 90
    data = write_rows(tmp_path / "long.jsonl", rows)
    words = f"--data {data} --max-length {99 if most else 1000}"
    line = line_of(train_rm, place, tmp_path / "out", words)
    command_line.run(train_rm.main, train_rm.Config, line)
    limit = "--max-length" if most else "the model's context"
    assert f"answer longer than {limit}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("--samples 99999999999", "--samples"),
        ("--samples 99999999999 --batch-size 99999999999", "--samples"),
        ("--batch-size 99999999999", "--batch-size"),
        ("--samples 8", "--samples 8"),
    ],
)
def test_more_answers_than_a_step_can_hold_is_one_sentence(place, tmp_path, words, flag, capfd):
    error = sentence_of(train_policy, place, tmp_path, words, capfd)
    assert flag in error and "take 99999999999" not in error


# Shapes of models, and tokenizers, as policy and as reward model.

FAMILIES = {
    "llama": {}, "qwen3": {}, "gpt_neox": {}, "gpt2": {}, "gpt_neo": {"window_size": 12},
    "gemma3": {}, "mistral": {"sliding_window": 8}, "bloom": {}, "falcon": {}, "mamba": {},
    "lfm2": {},
}  # fmt: skip
HEADLESS = ("mamba", "lfm2")  # transformers has no classifier for them


def run_and_load(script, place: Path, out: Path, words: str, monkeypatch):
    """A run of a training script, and the model and tokenizer that plain transformers load from it.

    They are those that the run had in memory: all weights and an output.
    """
    saved = []

    def save(model, tokenizer, folder):
        saved.append((model, tokenizer))
        save_model(model, tokenizer, folder)

    monkeypatch.setattr(loading, "save_model", save)
    line = line_of(script, place, out, words)
    assert command_line.run(script.main, script.Config, line) == 0
    ((model, tokenizer),) = saved
    policy = script is train_policy
    auto_class = AutoModelForCausalLM if policy else AutoModelForSequenceClassification
    loaded, info = auto_class.from_pretrained(
        out, dtype=model.dtype, output_loading_info=True, use_safetensors=True
    )
    assert not any(info.values())
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    again = AutoTokenizer.from_pretrained(out)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    ids = torch.tensor([encode_prompt(again, "what does the bear like?")])
    with torch.no_grad():
        ours, theirs = (m.eval()(ids).logits for m in (model, loaded))
    close = 2e-4 if model.dtype == torch.float32 else 0.05  # another attention kernel
    assert_close(theirs, ours, rtol=5 * close, atol=close)
    return loaded, again


def metrics_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def trains(place: Path, tmp_path: Path, base: Path, dtype: str, monkeypatch, heads=True) -> None:
    """Two steps of both reward heads from `base`, then of a policy against each of them.

    heads: False for models that cannot have one; then the policy gets another reward model.
    """
    start = dict(load_causal_lm(str(base), torch.float32).named_parameters())
    if not heads:
        (tmp_path / "scalar").symlink_to(place / "rm")
    for head in ("scalar", "ratings") if heads else ("scalar",):
        words = f"--model {base} --head {head} --dtype {dtype}"
        if heads:
            model, _ = run_and_load(train_rm, place, tmp_path / head, words, monkeypatch)
            assert model.num_labels == {"scalar": 1, "ratings": 10}[head]
            assert model.score.weight.any()
        words = f"--model {base} --reward-model {tmp_path / head} --dtype {dtype} --lr 0.01"
        out = tmp_path / f"policy-{head}"
        policy, _ = run_and_load(train_policy, place, out, words, monkeypatch)
        weights = dict(policy.named_parameters())
        assert any(not weights[name].float().equal(start[name]) for name in weights)
        gaps = [row["alignment/gap"] for row in metrics_of(out)]
        assert len(gaps) == 2 and max(gaps) < (0.001 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_this_shape_are_policies_and_reward_models(
    place, tmp_path, monkeypatch, family, dtype
):
    base = tiny_folder(tmp_path / "base", "smol", family, spread=0.1, **FAMILIES[family])
    trains(place, tmp_path, base, dtype, monkeypatch, heads=family not in HEADLESS)


@pytest.mark.parametrize("family", HEADLESS)
def test_a_model_that_cannot_have_a_head_is_one_sentence(place, tmp_path, family, capfd):
    folder = tiny_folder(tmp_path / "theirs", "smol", family)
    error = sentence_of(train_rm, place, tmp_path, f"--model {folder}", capfd)
    assert family in error and "another family" in error


@pytest.mark.parametrize("kind", ["smol", "no pad", "plain", "bos", "one-special", "padded"])
def test_a_tokenizer_of_this_kind_serves_policies_and_reward_models(
    place, tmp_path, monkeypatch, kind
):
    """Pad = end, no pad token, no template, its own BOS, one special token, more embeddings."""
    sizes = {"vocabulary": 512} if kind == "padded" else {}
    own = "smol" if kind in ("no pad", "padded") else kind
    base = tiny_folder(tmp_path / "base", own, **sizes)
    if kind == "no pad":
        tokenizer = load_tokenizer(str(base))
        tokenizer.pad_token = None
        tokenizer.save_pretrained(base)
        assert load_tokenizer(str(base)).pad_token is None
    trains(place, tmp_path, base, "float32", monkeypatch)


@pytest.mark.parametrize("family", ["bloom", "falcon", "mamba", "lfm2", "gemma3", "mistral"])
def test_models_that_take_no_tree_compute_the_same_as_plain_rows(family):
    """Rows of different lengths, answers that end early: sampler and training against an oracle."""
    attention = "eager" if family in ("bloom", "mamba") else "sdpa"
    model = tiny_model(family, attention, dtype=torch.float32, **FAMILIES[family])
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [12, 13], [4, 3, 5]]
    generator = torch.Generator().manual_seed(0)
    rollout = sample(model, prompts, 3, 12, [2, *range(14, 18)], 0.7, generator)
    assert rollout.finished.any() and len({len(a) for own in rollout.answers for a in own}) > 3
    with torch.no_grad():
        plain = loop_answer_log_probs(model, prompts, rollout.answers, 0.7).view(3, 3)
    assert_close(rollout.log_probs, plain, atol=1e-3, rtol=1e-4)
    assert_close(rollout_log_probs(model, rollout, 0.7, 4), plain, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_a_model_that_is_no_decoder_is_one_sentence_as_policy(place, tmp_path, kind, capfd):
    """BERT's tokens see the future, so sampling and training differ; the guard finds it."""
    tokenizer = tiny_tokenizer("smol")
    if kind == "bert":
        model = AutoModelForCausalLM.from_config(tiny_bert(len(tokenizer)))
    else:
        config = XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=24)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    line = line_of(train_policy, place, tmp_path / "out", f"--model {tmp_path / 'theirs'}")
    with pytest.raises(SystemExit) as stop:
        command_line.run(train_policy.main, train_policy.Config, line)
    error = capfd.readouterr().err.splitlines(keepends=True)[-1]
    assert_one_sentence(stop.value.code, error, [])
    assert ("differ" if kind == "bert" else "no decoder") in error


# Encoders and other heads as reward model.


def tiny_bert(vocabulary: int, **extra) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, **extra,
    )  # fmt: skip


def encoder_folder(folder: Path, family: str, labels: int, head: bool = True) -> Path:
    """A classifier with its own word-piece tokenizer, which has no end token and no template."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?!.,' "
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bear", "likes", "honey", *letters]
    words += [f"##{letter}" for letter in letters]
    inner = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = BertPreTokenizer()
    pair = {"pair": "[CLS] $A [SEP] $B:1 [SEP]:1", "single": "[CLS] $A [SEP]"}
    inner.post_processor = TemplateProcessing(**pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    config = tiny_bert(len(words))
    if family == "deberta":
        config = DebertaV2Config(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, type_vocab_size=2,
            relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16,
        )  # fmt: skip
    config.num_labels = labels
    torch.manual_seed(0)
    auto_class = AutoModelForSequenceClassification if head else AutoModel
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("labels", [1, 10])
@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_an_encoder_scores_pairs_of_texts_as_plain_transformers_does(tmp_path, family, labels):
    """Of different lengths, in one batch; the prompt is cut on the left, the answer is not."""
    folder = encoder_folder(tmp_path / "encoder", family, labels)
    scorer = RewardScorer(str(folder), torch.float32, tiny_tokenizer("smol"))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "a frog?"}, {"role": "assistant", "content": "no"}]
    prompts = ["what does the bear like?", [*turns, turns[0]], "0123456789 " * 9 + "bear"]
    texts = [["honey", "bear likes honey"], ["", "no!"], ["likes honey", "x"]]
    ours = scorer.text_outputs(prompts, texts, [[True, False]] * 3)
    expected = []
    for prompt, own in zip(prompts, texts, strict=True):
        for text in own:
            whole = prompt if isinstance(prompt, str) else "a frog?\n\nno\n\na frog?"
            first = tokenizer(whole, add_special_tokens=False).input_ids
            second = tokenizer(text, add_special_tokens=False).input_ids
            first = first[max(0, len(first) + len(second) + 3 - 64) :]
            row = [2, *first, 3, *second, 3]
            kinds = [0] * (len(first) + 2) + [1] * (len(second) + 1)
            ids, kinds = torch.tensor([row]), torch.tensor([kinds])
            with torch.no_grad():
                expected.append(model(ids, token_type_ids=kinds).logits[0])
    assert_close(ours, torch.stack(expected), atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match=r"answer of 70 tokens does not fit .* context of 64"):
        scorer.text_outputs(["a bear?"], [["honey " * 70]], [[True]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "labels"), [("bert", 1), ("deberta", 1), ("deberta", 10)])
def test_an_encoder_is_a_reward_model_and_a_judge(place, tmp_path, family, labels, dtype):
    folder = encoder_folder(tmp_path / "encoder", family, labels)
    words = f"--reward-model {folder} --dtype {dtype}"
    line = line_of(train_policy, place, tmp_path / "policy", words)
    assert command_line.run(train_policy.main, train_policy.Config, line) == 0
    rewards = [row["reward/mean"] for row in metrics_of(tmp_path / "policy")]
    assert len(rewards) == 2 and all(map(math.isfinite, rewards))
    words = f"--judge reward-model:{folder} --dtype {dtype}"
    line = line_of(judge, place, tmp_path / "judge", words)
    assert command_line.run(judge.main, judge.Config, line) == 0
    summary = json.loads((tmp_path / "judge" / "summary.json").read_text())
    assert summary["pairs"] == 3 and summary["failures"] == 0


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_a_classifier_of_two_labels_or_without_a_head_is_one_sentence(
    place, tmp_path, family, capfd
):
    two = encoder_folder(tmp_path / "two", family, 2)
    error = sentence_of(train_policy, place, tmp_path, f"--reward-model {two}", capfd)
    assert "two is a classifier with 2 labels" in error and "LANGUAGE_MODEL" in error
    bare = encoder_folder(tmp_path / "bare", family, 1, head=False)
    error = sentence_of(train_policy, place, tmp_path, f"--reward-model {bare}", capfd)
    assert "bare" in error and f"--model {bare}" not in error
    one = encoder_folder(tmp_path / "one", family, 1)
    error = sentence_of(train_rm, place, tmp_path, f"--model {one}", capfd)
    assert "one is an encoder" in error and "decoder" in error
