"""Sampling: answers are draws from π itself, and carry no graph."""

import gc
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from tiny_models import MODELS, lengths_of, tiny_folder, tiny_model
from torch.testing import assert_close
from transformers import GenerationConfig

import rlhf_min.models.answers as answers_module
import rlhf_min.models.sampling as sampling
from rlhf_min.hardware import threads
from rlhf_min.models.answers import sample_texts
from rlhf_min.models.batches import choose_layout
from rlhf_min.models.loading import checkpoint_layers, load_causal_lm, load_tokenizer
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import build_tree
from rlhf_min.models.sampling import sample

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14]]
END = [2]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loop_log_prob(model, prompt: list[int], ids: list[int], temperature: float) -> torch.Tensor:
    """Oracle: log π of one answer, the whole row computed anew for every token, no cache."""
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(ids):
        logits = model(torch.tensor([prompt + ids[:t]]), use_cache=False).logits[0, -1].double()
        total = total + (logits / temperature).log_softmax(-1)[token]
    return total


FAMILIES = [*MODELS, ("mistral", "sdpa")]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
@torch.no_grad()
def test_trap_7_the_sampler_s_log_probs_are_those_of_its_answers(family, attention, temperature):
    """Prompts of different lengths in one batch, finished rows leaving it, several end ids."""
    model = tiny_model(family, attention, torch.float32)
    rollout = sample(model, PROMPTS, 3, 9, [2, 3, 4], temperature, seeded())
    lengths = lengths_of(rollout).flatten().tolist()
    assert len(set(lengths)) > 1, "rows must finish at different times for this test to mean much"
    for p, k in product(range(3), range(3)):
        expected = loop_log_prob(model, PROMPTS[p], rollout.answers[p][k], temperature)
        assert_close(rollout.log_probs[p, k].double(), expected, atol=2e-3, rtol=1e-4)
    layout = choose_layout(model)
    again = answer_log_probs(model, build_tree(PROMPTS, rollout.answers, layout), temperature)
    assert_close(again.view(3, 3), rollout.log_probs, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("window", [3, 6])
@torch.no_grad()
def test_a_sliding_window_cache_gives_the_same_log_probs(window):
    model = tiny_model("mistral", "sdpa", torch.float32, sliding_window=window)
    rollout = sample(model, PROMPTS, 3, 9, [2, 3, 4], 1.0, seeded())
    for p, k in product(range(3), range(3)):
        expected = loop_log_prob(model, PROMPTS[p], rollout.answers[p][k], 1.0)
        assert_close(rollout.log_probs[p, k].double(), expected, atol=2e-3, rtol=1e-4)


@torch.no_grad()
def chi_square(model, prompts, temperature: float, draws: int = 6000) -> list[float]:
    """χ² of the first sampled tokens against softmax(logits/temperature), one per prompt."""
    rollout = sample(model, prompts, draws, 1, END, temperature, seeded(1))
    found = []
    for prompt, answers in zip(prompts, rollout.answers, strict=True):
        z = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].double() / temperature
        expected = z.softmax(-1) * draws
        counts = torch.bincount(torch.tensor(answers)[:, 0], minlength=len(z)).double()
        rare = expected < 5  # χ² needs a few expected counts in each cell: pool the rest
        counts, expected = (
            torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected.double())
        )
        kept = expected > 0.5
        found.append((((counts - expected) ** 2 / expected)[kept].sum()).item())
    return found


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_trap_7_tokens_come_as_often_as_the_softmax_says(temperature):
    """23 tokens: at most 23 degrees of freedom, χ² > 60 has a chance below 4e-5."""
    model = tiny_model("llama", "sdpa", torch.float32)
    assert max(chi_square(model, PROMPTS, temperature)) < 60


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_trap_7_a_token_without_probability_is_never_drawn(u):
    """At both ends of the random numbers, and where rounding leaves the CDF below 1."""
    p = torch.tensor([[0.0, 0.5 - 1e-6, 0.5 - 1e-6, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert sampling.draw(p, torch.full((2,), u)).tolist() == [2 if u else 1, 1]


@pytest.mark.parametrize(
    "habit",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 0.01},
        {"do_sample": True, "repetition_penalty": 50.0},
        {"do_sample": True, "temperature": 0.01},
        {"do_sample": True, "min_new_tokens": 8, "suppress_tokens": [2, 5]},
    ],
    ids=lambda habit: list(habit)[-1],
)
@torch.no_grad()
def test_trap_7_no_habit_of_the_generation_config_is_inherited(habit):
    model = tiny_model("llama", "sdpa", torch.float32)
    plain = sample(model, PROMPTS, 4, 8, END, 1.0, seeded())
    model.generation_config = GenerationConfig(**habit)
    assert sample(model, PROMPTS, 4, 8, END, 1.0, seeded()).answers == plain.answers


def test_trap_7_samples_of_a_prompt_differ_and_a_seed_repeats_them():
    model = tiny_model("llama", "sdpa", torch.float32)
    first, again, other = (sample(model, PROMPTS, 4, 8, END, 1.0, seeded(s)) for s in (0, 0, 1))
    for answers in first.answers:
        assert len({tuple(a) for a in answers}) > 1
    assert first.answers == again.answers != other.answers
    assert_close(first.log_probs, again.log_probs, rtol=0, atol=0)


@pytest.mark.parametrize("samples", [1, 3])
def test_trap_3_an_answer_holds_its_end_token_once_last_and_no_pad(samples):
    model = tiny_model("llama", "sdpa", torch.float32)
    rollout = sample(model, PROMPTS, samples, 6, [2, 3, 4], 1.3, seeded())
    assert rollout.finished.any() and (samples == 1 or not rollout.finished.all())
    assert rollout.prompts == PROMPTS and len(rollout.answers) == len(PROMPTS)
    for p, answers in enumerate(rollout.answers):
        assert len(answers) == samples
        for k, ids in enumerate(answers):
            ends = [i for i in ids if i in (2, 3, 4)]
            assert bool(rollout.finished[p, k]) == (ids[-1] in (2, 3, 4))
            assert ends == ids[-1:] if rollout.finished[p, k] else not ends and len(ids) == 6
            assert lengths_of(rollout)[p, k] == len(ids)


def test_trap_4_token_0_and_the_pad_id_are_ordinary_tokens():
    """Padding inside a batch is told by the mask: sampled ids equal to pad must not vanish."""
    model = tiny_model("llama", "sdpa", torch.float32)
    with torch.no_grad():  # token 0, the pad id, becomes likely everywhere
        model.lm_head.weight[0] = 0
        model.lm_head.weight[1:] *= 0.2
    rollout = sample(model, PROMPTS, 50, 5, END, 1.0, seeded())
    flat = [i for answers in rollout.answers for ids in answers for i in ids]
    assert flat.count(0) > len(flat) / 40
    with torch.no_grad():
        expected = loop_log_prob(model, PROMPTS[1], rollout.answers[1][0], 1.0)
    assert_close(rollout.log_probs[1, 0].double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt_neo", "gpt2", "mistral"])
@torch.no_grad()
def test_finished_rows_leaving_the_batch_change_nothing(family, monkeypatch):
    """With random numbers that follow from time and logits, an answer depends on its prompt."""
    model = tiny_model(family, "eager", torch.float32)
    noise = torch.rand(12, 23, 23, generator=seeded())  # time, likeliest token, token
    prompts = [[i % 23, *range(3, 3 + i % 5)] for i in range(3, 27)]
    ends, time = [2, 3, 4], [0]

    def draw(probabilities, u):
        """Gumbel-max; the time is told by how often it was asked."""
        time[0] += 1
        own = noise[time[0] - 1, probabilities.argmax(-1)]
        return (probabilities.log() / 2 - (-own.log()).log()).argmax(-1)

    def run(prompts, samples):
        time[0] = 0
        monkeypatch.setattr(sampling, "draw", draw)
        return sample(model, prompts, samples, 12, ends, 1.0)

    together = run(prompts, 2)
    assert lengths_of(together).unique().numel() > 2
    for p, prompt in enumerate(prompts):
        alone = run([prompt], 1)
        assert [alone.answers[0][0]] * 2 == together.answers[p]
        expected = alone.log_probs[0].expand(2)
        assert_close(together.log_probs[p], expected, atol=1e-3, rtol=1e-4)
        assert (together.finished[p] == alone.finished[0]).all()


def test_a_batch_of_one_and_a_single_new_token_work():
    model = tiny_model("llama", "sdpa", torch.float32)
    rollout = sample(model, [[5]], 1, 1, END, 1.0, seeded())
    assert [len(a) for a in rollout.answers[0]] == [1]


def test_trap_6_a_rollout_carries_no_graph():
    model = tiny_model("llama", "sdpa", torch.float32).train()
    rollout = sample(model, PROMPTS, 2, 8, END, 1.0, seeded())
    for tensor in (rollout.log_probs, rollout.finished, lengths_of(rollout)):
        assert not tensor.requires_grad and tensor.grad_fn is None
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


def test_trap_6_no_activation_outlives_the_sampling():
    """After a rollout the collector sees a handful of numbers more, however long it was."""
    model = tiny_model("llama", "sdpa", torch.float32).train()

    def alive() -> int:
        gc.collect()
        return sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor)

    before = alive()
    rollout = sample(model, PROMPTS, 8, 60, [22], 1.0, seeded())
    assert alive() - before < 200
    assert lengths_of(rollout).max() > 20


def test_trap_19_the_cache_is_on_under_gradient_checkpointing(monkeypatch):
    model = tiny_model("llama", "sdpa", torch.float32)
    checkpoint_layers(model)
    widths, cached, forward = [], [], model.forward

    def counting(*args, **kwargs):
        output = forward(*args, **kwargs)
        widths.append(kwargs["input_ids"].shape[1])
        cached.append(output.past_key_values is not None)
        return output

    monkeypatch.setattr(model, "forward", counting)
    rollout = sample(model, PROMPTS, 2, 6, [22], 1.0, seeded())
    assert widths[0] == 7 and set(widths[1:]) == {1} and all(cached)
    layers = model.base_model.layers
    assert all(layer.training for layer in layers)  # handed back as it came
    monkeypatch.undo()
    model.gradient_checkpointing_disable()
    plain = sample(model.eval(), PROMPTS, 2, 6, [22], 1.0, seeded())
    assert plain.answers == rollout.answers and not model.training


def test_a_model_comes_back_in_training_mode_even_after_an_error(monkeypatch):
    model = tiny_model("llama", "sdpa", torch.float32).train()
    monkeypatch.setattr(sampling, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(model, PROMPTS, 2, 6, [22], 1.0, seeded())
    assert model.training


def test_a_prompt_runs_through_the_model_once_for_all_its_samples(monkeypatch):
    model = tiny_model("llama", "sdpa", torch.float32)
    shapes, forward = [], model.forward

    def counting(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    sample(model, PROMPTS, 5, 4, [22], 1.0, seeded())
    assert shapes[0] == (3, 7) and shapes[1] == (15, 1)


def test_answers_as_text_keep_their_order_whatever_the_batches(tmp_path):
    folder = str(tiny_folder(tmp_path / "m", "smol"))
    model, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    prompts = ["a", "the bear likes honey", [{"role": "user", "content": "the frog"}]]
    texts, finished = sample_texts(model, tokenizer, prompts, 5, 0.01, seed=0, batch_size=2)
    assert len(texts) == len(finished) == 3
    for prompt, text in zip(prompts, texts, strict=True):
        alone, _ = sample_texts(model, tokenizer, [prompt], 5, 0.01, seed=3)
        assert alone == [text]  # at temperature 0.01 the seed hardly matters


def test_trap_14_text_prompts_that_are_too_long_are_cut_from_the_left(tmp_path, monkeypatch):
    folder = str(tiny_folder(tmp_path / "m", "plain"))
    model, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    seen = []
    monkeypatch.setattr(
        answers_module, "sample", lambda model, prompts, *rest: seen.extend(prompts) or sample(
            model, prompts, *rest
        ),
    )  # fmt: skip
    sample_texts(model, tokenizer, ["the bear likes " * 90], 28)
    assert len(seen[0]) == 100 and seen[0][0] == tokenizer.bos_token_id


def test_no_room_for_a_prompt_is_an_error_in_words(tmp_path):
    folder = str(tiny_folder(tmp_path / "m", "plain"))
    model, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    for tokens in (128, 500):
        with pytest.raises(ValueError, match="max-new-tokens"):
            sample_texts(model, tokenizer, ["the bear likes honey"], tokens)


def test_sampled_texts_have_temperature_1_and_seed_0_unless_something_else_is_asked_for(tmp_path):
    folder = str(tiny_folder(tmp_path / "m", "smol"))
    model, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    prompts = [f"the bear likes {word}" for word in ("honey", "fish", "the frog", "a red fox")]
    default = sample_texts(model, tokenizer, prompts, 8)
    assert default == sample_texts(model, tokenizer, prompts, 8, 1.0, 0)
    assert default != sample_texts(model, tokenizer, prompts, 8, 2.0, 0)
    assert default != sample_texts(model, tokenizer, prompts, 8, 1.0, 1)


@torch.no_grad()
def test_trap_7_temperature_2_is_no_exception():
    """A temperature of 1 needs no division; every other does."""
    model = tiny_model("llama", "sdpa", torch.float32)
    rollout = sample(model, PROMPTS, 1, 4, END, 2.0, seeded())
    tree = build_tree(PROMPTS, rollout.answers, choose_layout(model))
    ours = answer_log_probs(model, tree, 2.0)
    for p in range(3):
        expected = loop_log_prob(model, PROMPTS[p], rollout.answers[p][0], 2.0)
        assert_close(rollout.log_probs[p, 0].double(), expected, atol=1e-4, rtol=1e-4)
        assert_close(ours[p].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("below", "used"), [(2**26, 1), (0, 2)])
def test_small_work_is_sampled_with_one_thread(below, used, monkeypatch):
    """Restored afterwards, also by an error; more work keeps all threads."""
    monkeypatch.setattr(threads, "ALONE_BELOW", below)
    before, seen = torch.get_num_threads(), []

    def draw(probabilities, u):
        seen.append(torch.get_num_threads())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return probabilities.argmax(-1)

    monkeypatch.setattr(sampling, "draw", draw)
    torch.set_num_threads(2)
    try:
        for error in (nullcontext(), pytest.raises(KeyboardInterrupt)):
            with error:
                sample(tiny_model("llama", "sdpa", torch.float32), PROMPTS, 1, 2, END)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [used] * 3


def test_the_threshold_spares_large_models():
    """64 rows of the zoo's model sample with one thread, one row of SmolLM2-135M with all."""
    zoo, smol = 280_000, 134_515_008
    assert 64 * zoo < threads.ALONE_BELOW < smol
