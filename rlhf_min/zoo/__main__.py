"""Print pairs with their annotator's ratings and gold ratings: python -m rlhf_min.zoo --show 5."""

import argparse

from rlhf_min.zoo import world


def main() -> None:
    parser = argparse.ArgumentParser("python -m rlhf_min.zoo", allow_abbrev=False)
    parser.add_argument("--show", type=int, default=5, metavar="N", help="pairs to print (5)")
    parser.add_argument("--split", choices=("train", "held-out"), default="train", help="(train)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pairs (0)")
    config = parser.parse_args()
    if config.show < 1:
        parser.error(f"--show must be at least 1, got {config.show}")
    for row in world.pairs(config.split, config.show, config.seed):
        print(row["prompt"])
        for side in ("chosen", "rejected"):
            gold = world.gold_rating(row["prompt"], row[side])
            print(f"  {side:8}  rated {row[side + '_rating']:2.0f}, gold {gold:4.1f}  {row[side]}")
        print()


if __name__ == "__main__":
    main()
