"""How a reward model scores a rollout, the reward scale, and the alignment guard."""

import math

import pytest
import torch
from test_reward_model import trained_folder
from tiny_models import tiny_folder, tiny_tokenizer
from torch.testing import assert_close

from rlhf_min import InputError
from rlhf_min.maths.reward_shaping import reward_scale, standardise
from rlhf_min.models import scoring
from rlhf_min.models.alignment import alignment_gap, check_alignment
from rlhf_min.models.answers import encode_texts
from rlhf_min.models.loading import load_causal_lm, load_tokenizer
from rlhf_min.models.reward_model import all_outputs
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import decode_answer, encode_prompt

PROMPTS = ["the bear", [{"role": "user", "content": "what does the frog like?"}], "a"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A policy folder of each kind of tokenizer, and reward models grown from them."""
    place = tmp_path_factory.mktemp("world")
    folders = {}
    for kind in ("smol", "chatml", "plain", "one-special"):
        base = tiny_folder(place / kind, kind)
        folders[kind] = str(base)
        for head in ("scalar", "ratings"):
            folders[kind, head] = str(trained_folder(base, place / f"{kind}-{head}", head))
    return folders


def rollout_of(folder: str, samples: int = 3, tokens: int = 10) -> tuple[Rollout, object]:
    model, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    ids = [encode_prompt(tokenizer, prompt, 100) for prompt in PROMPTS]
    ends = [tokenizer.eos_token_id, *range(40, 60)]  # random models end often this way
    # With this seed no answer ends with the pad token, before which transformers would read.
    generator = torch.Generator().manual_seed(3)
    rollout = sample(model, ids, samples, tokens, ends, 1.0, generator)
    assert rollout.finished.any() and not rollout.finished.all()
    return rollout, tokenizer


def row_score(scorer, ids: list[int]) -> list[float]:
    with torch.no_grad():
        return scorer.model(torch.tensor([ids])).logits[0].tolist()


@pytest.mark.parametrize("kind", ["smol", "plain", "one-special"])
def test_trap_11_sampled_ids_are_scored_as_they_are(world, kind):
    """A random model writes tokens that its text would not be encoded to again."""
    rollout, tokenizer = rollout_of(world[kind])
    scorer = RewardScorer(world[kind, "ratings"], torch.float32, tokenizer)
    assert scorer.same_tokens
    outputs = scorer.rollout_outputs(rollout, PROMPTS)
    assert outputs.shape == (3, 3, 10) and not outputs.requires_grad
    changed = 0
    for p in range(3):
        for k in range(3):
            ids = rollout.answers[p][k]
            expected = row_score(scorer, rollout.prompts[p] + ids)
            assert outputs[p, k].tolist() == pytest.approx(expected, abs=2e-4)
            again = tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids
            changed += again != ids
    assert changed, "no answer would have changed: this test shows nothing"


@pytest.mark.parametrize("other", ["chatml", "plain", "one-special"])
def test_trap_11_another_tokenizer_reads_the_text_with_its_own_template(world, other):
    rollout, tokenizer = rollout_of(world["smol"])
    scorer = RewardScorer(world[other, "scalar"], torch.float32, tokenizer)
    assert not scorer.same_tokens
    outputs = scorer.rollout_outputs(rollout, PROMPTS)
    own = load_tokenizer(world[other])
    for p, prompt in enumerate(PROMPTS):
        for k, ids in enumerate(rollout.answers[p]):
            text = decode_answer(tokenizer, ids)
            answer = own(text, add_special_tokens=False).input_ids
            answer += [own.eos_token_id] if rollout.finished[p, k] or not answer else []
            expected = row_score(scorer, encode_prompt(own, prompt, 10**6) + answer)
            assert outputs[p, k].tolist() == pytest.approx(expected, abs=2e-4)


def test_trap_16_only_a_finished_answer_gets_an_end_token_when_encoded_again(world, monkeypatch):
    rollout, tokenizer = rollout_of(world["smol"])
    scorer = RewardScorer(world["plain", "scalar"], torch.float32, tokenizer)
    seen = []

    def recording(model, ids, branches):
        seen.extend(branches)
        return all_outputs(model, ids, branches)

    monkeypatch.setattr(scoring, "all_outputs", recording)
    scorer.rollout_outputs(rollout, PROMPTS)
    end = scorer.tokenizer.eos_token_id
    ended = [[ids[-1] == end for ids in answers] for answers in seen]
    assert ended == rollout.finished.tolist()


@pytest.mark.parametrize("longer", [0, 1, 2])
@pytest.mark.parametrize("kind", ["plain", "chatml"])
def test_trap_14_a_prompt_is_cut_for_the_longest_of_its_answers(kind, longer):
    """Whichever it is: all answers to a prompt share its tokens."""
    tokenizer, prompt = tiny_tokenizer(kind), "the bear likes honey and " * 9
    texts = ["no", "flies", "a frog"]
    texts[longer] = "the frog likes flies and honey"
    (ids,), (answers,) = encode_texts(tokenizer, [prompt], [texts], [[True] * 3], 40)
    lengths = list(map(len, answers))
    assert lengths.index(max(lengths)) == longer
    assert len(ids) + max(lengths) == 40
    assert ids == encode_prompt(tokenizer, prompt, 40 - max(lengths))
    with pytest.raises(InputError, match=f"answer of {max(lengths)} tokens does not fit"):
        encode_texts(tokenizer, [prompt], [texts], [[True] * 3], max(lengths))


def test_the_same_tokens_with_another_template_are_other_tokens(world):
    tokenizer = load_tokenizer(world["smol"])
    tokenizer.chat_template = tokenizer.chat_template.replace("You help.", "You rate.")
    assert not RewardScorer(world["smol", "scalar"], torch.float32, tokenizer).same_tokens
    assert RewardScorer(world["smol", "scalar"], torch.float32, tiny_tokenizer("smol")).same_tokens


@pytest.mark.parametrize("head", ["scalar", "ratings"])
def test_win_compares_with_the_start_model_s_answer_to_the_same_prompt(world, head):
    rollout, tokenizer = rollout_of(world["chatml"])
    start, _ = rollout_of(world["chatml"], samples=1, tokens=14)
    scorer = RewardScorer(world["chatml", head], torch.float32, tokenizer, "win")
    assert scorer.needs_reference
    rewards, weights = scorer.score(rollout, PROMPTS, start)
    assert rewards.shape == weights.shape == (3, 3) and (weights == 1).all()
    for p in range(3):
        q = torch.tensor(row_score(scorer, start.prompts[p] + start.answers[p][0]))
        for k in range(3):
            z = torch.tensor(row_score(scorer, rollout.prompts[p] + rollout.answers[p][k]))
            if head == "scalar":
                expected = 1 / (1 + torch.exp(q - z))
            else:
                joint = z.softmax(-1)[:, None] * q.softmax(-1)[None, :]
                expected = joint.tril(-1).sum() + joint.diagonal().sum() / 2
            assert rewards[p, k].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("wish", [{"reading": "entropic"}, {"weight": "inverse-sigma"}])
def test_a_scalar_head_cannot_give_a_distribution(world, wish):
    with pytest.raises(InputError, match="gives one number"):
        RewardScorer(world["plain", "scalar"], torch.float32, tiny_tokenizer("plain"), **wish)


def test_trap_22_two_reward_models_on_different_scales_give_one_reward(world):
    """The reward scale comes from the start model's own answers: a scale and a shift cancel."""
    rollout, tokenizer = rollout_of(world["chatml"])
    start, _ = rollout_of(world["chatml"], samples=1, tokens=14)
    scorer = RewardScorer(world["chatml", "scalar"], torch.float32, tokenizer)
    rewards, of_start = (scorer.score(r, PROMPTS)[0] for r in (rollout, start))
    scale = reward_scale(of_start)
    assert scale["mean"] == pytest.approx(of_start.mean().item(), abs=1e-5)
    assert scale["std"] == pytest.approx(of_start.std().item(), abs=1e-5)
    other = reward_scale(3 * of_start - 7)
    assert_close(standardise(3 * rewards - 7, **other), standardise(rewards, **scale))


@pytest.mark.parametrize("answers", [[2.0], [2.0, 2.0, 2.0]])
def test_a_reward_scale_of_few_or_equal_answers_gives_finite_rewards(answers):
    scale = reward_scale(torch.tensor(answers))
    assert standardise(torch.tensor([2.0, 2.5]), **scale).isfinite().all()


def test_the_gap_is_the_mean_difference_per_token():
    rollout = Rollout(
        prompts=[[5], [6]],
        answers=[[[7, 2], [8]], [[9, 10, 11, 12], [13, 2]]],
        finished=torch.tensor([[True, False], [False, True]]),
        log_probs=torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]),
    )
    ours = torch.tensor([[-1.2, -2.0], [-2.0, -4.0]])
    assert alignment_gap(rollout, ours) == pytest.approx((0.2 / 2 + 1.0 / 4) / 4)
    assert alignment_gap(rollout, rollout.log_probs) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_guard_lets_rounding_pass_and_stops_anything_else(dtype):
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.001
    check_alignment(0.9 * tolerance, dtype)
    for gap in (1.1 * tolerance, 2.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="would be wrong"):
            check_alignment(gap, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_a_gap_of_exactly_the_tolerance_passes(dtype, tolerance):
    check_alignment(tolerance, dtype)
    with pytest.raises(InputError, match="would be wrong"):
        check_alignment(math.nextafter(tolerance, 1), dtype)


def test_an_id_without_embedding_is_scored_by_its_text(world):
    """A policy may have more embeddings than its tokenizer has tokens, and sample any of them."""
    rollout, tokenizer = rollout_of(world["smol"])
    scorer = RewardScorer(world["smol", "scalar"], torch.float32, tokenizer)
    rollout.answers[0][0][-1] = scorer.model.get_input_embeddings().num_embeddings + 5
    scores = scorer.score(rollout, PROMPTS)[0]
    texts = [
        [tokenizer.decode(a, skip_special_tokens=True) for a in own] for own in rollout.answers
    ]
    expected = scorer.text_outputs(PROMPTS, texts, rollout.finished.tolist())[:, 0]
    assert scores.flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
