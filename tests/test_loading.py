"""Loading models and tokenizers, the one builder of token rows, and who can take a prompt tree."""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_reward_model import trained_folder
from tiny_models import MODELS, tiny_folder, tiny_model, tiny_tokenizer
from torch.testing import assert_close
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PhimoeConfig,
    PhimoeForCausalLM,
)
from transformers.utils import logging

from rlhf_min import InputError
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.models import batches, tokens
from rlhf_min.models.batches import choose_layout
from rlhf_min.models.layout import context_length
from rlhf_min.models.loading import checkpoint_layers, load_causal_lm, load_tokenizer, save_model
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import build_tree
from rlhf_min.models.reward_model import load_reward_model, new_reward_model
from rlhf_min.models.sampling import sample
from rlhf_min.models.tokens import (
    decode_answer,
    encode_answer,
    encode_answers,
    encode_prompt,
    encode_prompts,
    end_token_ids,
    turn_end,
)

SHARED = Path(__file__).parents[2] / "shared" / "models"
REAL = ("tinystories-chat-3m", "stories260k")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
BRANCHES = [[[14, 15, 2], [16, 17, 18, 19, 20]], [[21, 2], [22, 3, 4, 5, 6, 7]]]


def real(name: str) -> str:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here: ../shared/models holds the real models")
    return str(SHARED / name)


def words(tokenizer, ids: list[int]) -> str:
    """Token ids as the text they stand for, each special token visible."""
    return tokenizer.decode(ids, skip_special_tokens=False)


# Traps 12 and 13: golden rows of four kinds of tokenizer.

CHAT = [
    {"role": "user", "content": "the frog"},
    {"role": "assistant", "content": "likes flies"},
    {"role": "user", "content": "the bear"},
]
ASSISTANT = "<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou help.<|im_end|>\n"
USER = "<|im_start|>user\nthe bear<|im_end|>\n"
FIRST = "<|im_start|>user\nthe frog<|im_end|>\n" + ASSISTANT + "likes flies<|im_end|>\n"
GOLDEN = [
    ("chatml", "the bear", USER + ASSISTANT),
    ("chatml", CHAT, FIRST + USER + ASSISTANT),
    ("smol", "the bear", SYSTEM + USER + ASSISTANT),
    ("smol", CHAT, SYSTEM + FIRST + USER + ASSISTANT),
    ("bos", "the bear", "<s>[INST] the bear [/INST]"),
    ("bos", CHAT, "<s>[INST] the frog [/INST] likes flies </s>[INST] the bear [/INST]"),
    ("plain", "the bear", "<s>the bear"),
    ("plain", CHAT, "<s>the frog\n\nlikes flies\n\nthe bear"),
    ("one-special", "the bear", "the bear"),
]


@pytest.mark.parametrize(("kind", "prompt", "golden"), GOLDEN)
def test_trap_13_a_prompt_has_one_bos_its_system_turn_and_a_generation_prompt(kind, prompt, golden):
    tokenizer = tiny_tokenizer(kind)
    ids = encode_prompt(tokenizer, prompt, 10**6)
    assert words(tokenizer, ids) == golden
    if kind in ("bos", "plain"):
        assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("kind", "golden"),
    [
        ("chatml", "likes honey<|im_end|>"),
        ("smol", "likes honey<|im_end|>"),
        ("bos", " likes honey </s>"),
        ("gemma", "likes honey<end_of_turn>"),
        ("plain", "likes honey</s>"),
        ("one-special", "likes honey<|endoftext|>"),
    ],
)
def test_trap_12_an_answer_ends_at_its_end_token_as_a_rollout_does(kind, golden):
    tokenizer = tiny_tokenizer(kind)
    ids = encode_answer(tokenizer, "the bear", "likes honey")
    assert words(tokenizer, ids) == golden
    assert ids[-1] == turn_end(tokenizer)[0] and ids.count(ids[-1]) == 1
    assert decode_answer(tokenizer, ids) == "likes honey"
    cut_off = encode_answer(tokenizer, "the bear", "likes honey", end=False)
    assert cut_off == ids[:-1]


@pytest.mark.parametrize("kind", ["chatml", "smol", "bos", "gemma"])
@pytest.mark.parametrize("prompt", ["the bear", CHAT, [{"role": "system", "content": "x"}, *CHAT]])
def test_trap_12_prompt_and_answer_are_the_template_s_own_text(kind, prompt):
    tokenizer = tiny_tokenizer(kind)
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    messages = [*messages, {"role": "assistant", "content": "likes honey"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    ours = encode_prompt(tokenizer, prompt, 10**6) + encode_answer(tokenizer, prompt, "likes honey")
    assert words(tokenizer, ours) == whole.rstrip("\n")


def test_trap_14_an_answer_that_quotes_the_end_token_is_kept_to_its_end():
    tokenizer = tiny_tokenizer("chatml")
    ids = encode_answer(tokenizer, "the bear", "<|im_end|> ends a turn")
    assert words(tokenizer, ids) == "<|im_end|> ends a turn<|im_end|>"


@pytest.mark.parametrize("kind", ["chatml", "bos", "gemma", "plain"])
def test_many_answers_at_once_have_the_ids_of_each_alone(kind, monkeypatch):
    """Oracle: the template's text behind the prompt's, encoded in a call of its own."""
    tokenizer = tiny_tokenizer(kind)
    monkeypatch.setattr(tokens, "TEXTS", 3)  # three calls, the last one of a single text
    answers = ["likes honey", "", "  the bear ", "Ärger 🙂", "honey and honey", "a", "b\n\nc"]
    prompts = ["the bear", CHAT, "the bear", "a", CHAT, "a", "the bear"]
    end, after = turn_end(tokenizer)
    for prompt, answer, ids in zip(
        prompts, answers, encode_answers(tokenizer, prompts, answers), strict=True
    ):
        if tokenizer.chat_template:
            turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            whole = [*turns, {"role": "assistant", "content": answer}]
            render = partial(tokenizer.apply_chat_template, tokenize=False)
            begin = len(render(turns, add_generation_prompt=True))
            answer = render(whole)[begin:].removesuffix(after)
        assert ids == [*tokenizer(answer, add_special_tokens=False).input_ids, end]


def test_an_answer_does_not_depend_on_its_prompt():
    tokenizer = tiny_tokenizer("chatml")
    assert encode_answer(tokenizer, "a", "honey ") == encode_answer(tokenizer, CHAT, "honey ")


@pytest.mark.parametrize("kind", ["chatml", "smol", "bos", "plain", "one-special"])
@pytest.mark.parametrize(
    "text", ["", "  spaced  ", "Ärger 漢字 🙂", "two\n\nlines", "{{ m }} {% x %}"]
)
def test_any_answer_survives_encoding(kind, text):
    tokenizer = tiny_tokenizer(kind)
    ids = encode_answer(tokenizer, "the bear", text)
    assert ids[-1] == tokenizer.eos_token_id
    assert decode_answer(tokenizer, ids) == text.strip()


# Trap 14: cut from the left, BOS kept, the answer whole.


@pytest.mark.parametrize("kind", ["chatml", "bos", "plain", "one-special"])
@pytest.mark.parametrize("room", [1, 2, 5, 12])
def test_trap_14_a_long_prompt_loses_its_left_end_and_keeps_its_bos(kind, room):
    tokenizer = tiny_tokenizer(kind)
    whole = encode_prompt(tokenizer, "the bear likes honey and " * 9, 10**6)
    cut = encode_prompt(tokenizer, "the bear likes honey and " * 9, room)
    assert len(cut) == room
    assert encode_prompt(tokenizer, "the bear likes honey and " * 9, len(whole)) == whole
    if whole[0] == tokenizer.bos_token_id and room > 1:
        assert cut[0] == tokenizer.bos_token_id
        assert cut[1:] == whole[len(whole) - room + 1 :]
    else:
        assert cut == whole[len(whole) - room :]


def test_trap_14_cut_prompts_are_counted_and_refused_when_none_fits():
    tokenizer = tiny_tokenizer("plain")
    prompts, cut = encode_prompts(tokenizer, ["the bear", "the bear " * 30], 10)
    assert cut == 1 and [len(p.ids) for p in prompts] == [3, 10]
    with pytest.raises(InputError, match="every prompt is longer than the context"):
        encode_prompts(tokenizer, ["the bear " * 30, "the frog " * 40], 10)
    for room in (0, -5):
        with pytest.raises(InputError, match="--max-new-tokens leaves no room"):
            encode_prompts(tokenizer, ["the bear"], room)


# End tokens.


def test_every_end_id_of_tokenizer_and_generation_config_ends_an_answer(tmp_path):
    folder = tiny_folder(tmp_path / "m", "smol")
    model, tokenizer = load_causal_lm(str(folder), torch.float32), load_tokenizer(str(folder))
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = [0, 7]
    assert end_token_ids(model, tokenizer) == [0, tokenizer.eos_token_id, 7]
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id]


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    forget(folder / "tokenizer_config.json", "eos_token")
    with pytest.raises(InputError, match="no end token"):
        load_tokenizer(str(folder))


def forget(file: Path, *names: str) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k not in names}))


# Trap 18: nothing may be left random.


def drop_weight(folder: Path, *names: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in names:
        weights.pop(name)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
def test_trap_18_a_classifier_gets_every_weight_of_the_language_model(tmp_path, tied):
    folder = tiny_folder(tmp_path / "m", tie_word_embeddings=tied)
    weights = load_file(folder / "model.safetensors")
    model = new_reward_model(str(folder), "ratings", torch.float32)
    own = dict(model.named_parameters())
    for name, weight in weights.items():
        if name != "lm_head.weight":
            assert_close(own[name], weight, rtol=0, atol=0)
    assert own["score.weight"].shape == (10, 16) and not own["score.weight"].any()


@pytest.mark.parametrize("lost", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_trap_18_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path, lost):
    folder = tiny_folder(tmp_path / "m")
    drop_weight(folder, lost)
    with pytest.raises(InputError, match=lost.removeprefix("model.")):
        new_reward_model(str(folder), "scalar", torch.float32)
    with pytest.raises(InputError, match="lacks the weight"):
        load_causal_lm(str(folder), torch.float32)


def test_trap_18_a_tied_checkpoint_saved_by_its_head_only_is_refused_or_complete(tmp_path):
    """Seen in the wild: embeddings stored as `lm_head.weight`, so a classifier finds none."""
    folder = tiny_folder(tmp_path / "m", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        model = new_reward_model(str(folder), "scalar", torch.float32)
    except InputError as error:
        assert "embed_tokens" in str(error)
    else:
        assert_close(model.get_input_embeddings().weight, weights["lm_head.weight"])


def test_a_folder_without_a_head_is_no_reward_model(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    with pytest.raises(InputError, match="no reward head"):
        load_reward_model(str(folder), torch.float32)


@pytest.mark.parametrize("damage", ["absent", "no config", "broken weights", "no tokenizer"])
def test_an_unusable_folder_is_one_sentence(tmp_path, damage):
    folder = tmp_path / "m"
    if damage != "absent":
        tiny_folder(folder)
    if damage == "no config":
        (folder / "config.json").unlink()
    if damage == "broken weights":
        (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    if damage == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(InputError) as error:
        load_tokenizer(str(folder))
        load_causal_lm(str(folder), torch.float32)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_gradient_checkpointing_of_a_model_without_it_is_one_clear_sentence():
    sizes = {"vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    with pytest.raises(InputError, match="--gradient-checkpointing: OpenAIGPTLMHeadModel does not"):
        checkpoint_layers(OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes)))


def test_gradient_checkpointing_leaves_everything_else_in_evaluation_mode():
    """PhiMoE draws its experts at random in training mode."""
    torch.manual_seed(0)
    config = PhimoeConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    model = PhimoeForCausalLM(config).eval()
    ids = torch.arange(3, 15)[None]
    before = model(ids).logits
    checkpoint_layers(model)
    with_checkpoints = model(ids).logits
    assert_close(with_checkpoints, before, rtol=0, atol=0)
    passes = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1))
    model(ids).logits.sum().backward()
    assert len(passes) == 2  # forward, and again in the backward pass


def test_dropout_is_off_and_weights_have_the_dtype_asked_for(tmp_path):
    folder = tiny_folder(tmp_path / "m", family="gpt2", resid_pdrop=0.5, attn_pdrop=0.5)
    model = load_causal_lm(str(folder), torch.bfloat16).train()  # as under gradient checkpointing
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert choose_dtype("float32") == torch.float32
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


# The layout: tree where it is right, plain rows where it is not.


def spoken(model) -> tuple:
    said = []
    return choose_layout(model, said.append), said


@pytest.mark.parametrize(("family", "attention"), [*MODELS, ("mistral", "sdpa")])
def test_trap_20_these_families_take_a_tree_in_silence(family, attention):
    layout, said = spoken(tiny_model(family, attention, torch.float32))
    assert layout.tree and said == []


@pytest.mark.parametrize("rows", [1, 2])
def test_a_model_that_is_wrong_for_one_tree_or_for_several_rows_gets_plain_rows(rows):
    """Short trees share one row, longer ones have a row each; both forms are tried."""
    model = tiny_model("llama", dtype=torch.float32)
    layer = model.base_model.layers[0]
    plain = layer.forward
    layer.forward = lambda x, *args, **kwargs: plain(x, *args, **kwargs) * (1 + (len(x) == rows))
    layout, (said,) = spoken(model)
    assert not layout.tree and "states differ" in said


def test_local_attention_takes_a_tree_whose_rows_fit_into_its_window():
    layout, said = spoken(tiny_model("gpt_neo", "eager", torch.float32, window_size=12))
    assert (layout.tree, layout.max_row, said) == (True, 12, [])


def _right_with_its_layout(model, prompts, branches) -> None:
    """The layout chosen gives the log-probs of one plain sequence at a time."""
    layout = choose_layout(model, lambda line: None)
    ours = answer_log_probs(model, build_tree(prompts, branches, layout))
    expected = []
    for prompt, answers in zip(prompts, branches, strict=True):
        for answer in answers:
            logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0]
            log_p = logits[len(prompt) - 1 : -1].log_softmax(-1)
            expected.append(log_p[range(len(answer)), answer].sum())
    assert_close(ours, torch.stack(expected), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("window", [4, 8, 12, 16, 24])
@torch.no_grad()
def test_trap_20_a_sliding_window_shorter_than_the_rows_is_never_silently_wrong(window):
    """A 4-D mask switches the model's own window off: rows beyond it must not go in as a tree."""
    model = tiny_model("mistral", "sdpa", torch.float32, sliding_window=window)
    ids = torch.randint(3, 23, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    _right_with_its_layout(model, [ids[:20], ids[20:30]], [[ids[30:45], ids[45:48]], [ids[48:]]])


@torch.no_grad()
def test_a_model_that_cannot_take_a_tree_says_so_once_and_is_right():
    model = tiny_model("mistral", "sdpa", torch.float32, sliding_window=4)
    layout, said = spoken(model)
    assert not layout.tree and len(said) == 1 and "one row per answer" in said[0]
    _right_with_its_layout(model, PROMPTS, BRANCHES)


@torch.no_grad()
def test_gpt_neo_s_local_layers_are_right_beyond_their_window():
    model = tiny_model("gpt_neo", "eager", torch.float32, window_size=16)
    ids = torch.randint(3, 23, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    _right_with_its_layout(model, [ids[:20], ids[20:30]], [[ids[30:45], ids[45:48]], [ids[48:]]])


@torch.no_grad()
def test_a_recurrent_model_falls_back_to_plain_rows():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=23, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = MambaForCausalLM(config).eval()
    layout, said = spoken(model)
    assert not layout.tree and len(said) == 1
    _right_with_its_layout(model, PROMPTS, BRANCHES)


def test_the_tree_does_not_change_the_numbers():
    model = tiny_model("llama", "sdpa", torch.float64)
    layout = choose_layout(model)
    assert layout.max_row == context_length(model) == 128
    plain = replace(layout, tree=False)
    log_probs = [answer_log_probs(model, build_tree(PROMPTS, BRANCHES, x)) for x in (layout, plain)]
    assert_close(*log_probs, atol=2e-5, rtol=1e-5)


# Real models.


@pytest.mark.parametrize("name", REAL)
def test_a_real_model_takes_a_tree_and_its_sampler_agrees_with_the_re_forward(name):
    path = real(name)
    model, tokenizer = load_causal_lm(path, torch.float32), load_tokenizer(path)
    layout, said = spoken(model)
    assert layout.tree and said == []
    texts = ["Hello! How are you?", "Tell me a story about a dog, please.", "Once"]
    encoded, _ = encode_prompts(tokenizer, texts, context_length(model) - 24)
    prompts = [prompt.ids for prompt in encoded]
    rollout = sample(
        model, prompts, 3, 24, end_token_ids(model, tokenizer),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        again = answer_log_probs(model, build_tree(prompts, rollout.answers, layout)).view(3, 3)
    assert_close(again, rollout.log_probs, atol=2e-3, rtol=1e-4)


def test_the_real_chat_model_s_prompt_is_its_template():
    tokenizer = load_tokenizer(real("tinystories-chat-3m"))
    ids = encode_prompt(tokenizer, "Hello!", 10**6)
    answer = encode_answer(tokenizer, "Hello!", "Hi there.")
    assert words(tokenizer, ids + answer) == "User: Hello!\nBot: Hi there.<|endoftext|>"


PAGES = """
import resource, sys, torch
from rlhf_min.hardware.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    for _ in range(8):
        torch.ones(2**23)  # 32 MiB: from here on glibc always gives back
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_without_fresh_pages():
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", PAGES, how], text=True))
        for how in ("keep", "return")
    )
    assert kept < returned / 4  # not none: holes between blocks are found after a few rounds


@pytest.mark.parametrize("head", ["scalar", "ratings"])
def test_a_reward_model_is_no_language_model_even_where_the_head_is_tied(tmp_path, head):
    """With tied embeddings no weight is missing: it would be trained as a policy, silently."""
    base = tiny_folder(tmp_path / "base", "smol", "qwen2")
    folder = trained_folder(base, tmp_path / "rm", head)
    with pytest.raises(InputError, match=r"rm is a reward model .*language model"):
        load_causal_lm(str(folder), torch.float32)
    load_causal_lm(str(base), torch.float32)


def test_a_saved_folder_can_be_read_by_those_whom_the_umask_allows(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    model, tokenizer = load_causal_lm(str(folder), torch.float32), load_tokenizer(str(folder))
    (tmp_path / "out").mkdir()
    before = os.umask(0o027)
    try:
        save_model(model, tokenizer, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640} and "model.safetensors" in modes


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-3), (torch.bfloat16, 0.1)])
def test_a_tree_may_differ_from_plain_rows_by_rounding_only(monkeypatch, dtype, limit):
    """The probe's largest difference over its largest number, 0.001 or for bfloat16 a tenth."""
    for gap, tree in ((0.9 * limit, True), (1.1 * limit, False), (limit, False)):
        states = torch.tensor([[0.0, -4.0, 3.0], [4 * gap, -4.0, 3.0]], dtype=torch.float64)
        probe = lambda _, layout, states=states: states[int(layout.tree)]  # noqa: E731
        monkeypatch.setattr(batches, "_probe_states", probe)
        layout, said = spoken(tiny_model("llama", "sdpa", dtype))
        assert layout.tree == tree and len(said) == (not tree)


def test_transformers_shows_no_bars_and_no_warnings():
    """Their place is the terminal, where our own sentences and bars are."""
    assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == logging.ERROR


def test_a_prompt_that_just_fits_is_not_counted_as_cut(capsys):
    tokenizer, prompts = tiny_tokenizer("smol"), ["the bear", "the bear likes honey"]
    longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts)
    assert encode_prompts(tokenizer, prompts, longest)[1] == 0
    assert capsys.readouterr().out == ""
    assert encode_prompts(tokenizer, prompts, longest - 1)[1] == 1
    said = f"1 of 2 prompts were cut on the left to fit {longest - 1} tokens\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("wrong", [-1, 23, 7.0, "end"])
def test_an_end_id_that_the_model_does_not_have_is_named_with_those_it_has(tmp_path, wrong):
    folder = str(tiny_folder(tmp_path / "m", "smol"))
    model, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    rows = model.get_input_embeddings().num_embeddings
    if wrong == 23:
        model.generation_config.eos_token_id = [0, rows - 1]
        assert end_token_ids(model, tokenizer)[-1] == rows - 1
        wrong = rows
    model.generation_config.eos_token_id = [0, wrong]
    message = f"eos_token_id {wrong!r} is no token id from 0 to {rows - 1}: correct it"
    with pytest.raises(InputError, match=re.escape(message)):
        end_token_ids(model, tokenizer)


def test_who_has_a_model_without_a_reward_head_is_told_how_to_train_one(tmp_path):
    folder = str(tiny_folder(tmp_path / "m"))
    advice = f"train one with `python train_rm.py --model {folder} --out DIR` and give DIR instead"
    with pytest.raises(InputError, match=re.escape(advice)):
        load_reward_model(folder, torch.float32)
