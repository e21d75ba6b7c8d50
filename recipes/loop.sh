#!/usr/bin/env bash
# A short form of recipes/loop.py: policy → judge → reward model → policy, several rounds.
#
#   recipes/loop.sh [ROUNDS] [COMPARISONS] [OUT] [SEED]        (3 1900 runs/loop 0)
#
# The same command again goes on with an interrupted loop, more ROUNDS with a finished one.
#
# Environment variables give the other settings: START=DIR (start model), REWARD_MODEL=DIR (the
# reward model of round 0; without it, one is trained in OUT/rm-0), STEPS, KL, LR (of each policy),
# PAIRS=SPEC (original pairs), OLD=N (how many of them in the mix), COLD=1 (train each reward model
# from the start model), RIVAL=last (judge against the policy before).
case "${1:-}" in -h | --help) sed -n '2,11p' "$0" && exit ;; esac
[ $# -le 4 ] || { echo "error: $5: at most four arguments, see --help" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 1
exec "${PYTHON:-python}" recipes/loop.py --rounds "${1:-3}" --comparisons "${2:-1900}" \
  --out "${3:-runs/loop}" --seed "${4:-0}" --start "${START:-runs/zoo-base}" \
  ${REWARD_MODEL:+--reward-model "$REWARD_MODEL"} --steps "${STEPS:-60}" --kl "${KL:-0.2}" \
  --lr "${LR:-5e-4}" --pairs "${PAIRS:-zoo}" --old "${OLD:-2000}" ${COLD:+--cold} \
  --rival "${RIVAL:-self}"
