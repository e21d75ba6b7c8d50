"""Print pairs of the zoo with their ratings: python -m rlhf_min.zoo --show 5."""

from rlhf_min.zoo.world import main

if __name__ == "__main__":
    main()
