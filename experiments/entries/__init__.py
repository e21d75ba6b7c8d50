"""Entries of docs/leaderboard.md: each is a program that makes a policy of the zoo from nothing.

`python experiments/entries/NAME.py SEED OUT` leaves the policy in OUT/policy and all its other runs
in OUT.  Shell scripts (NAME.sh) work too.
"""
