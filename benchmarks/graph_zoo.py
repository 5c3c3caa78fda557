"""Removes channels from `keras.applications`: `python -m benchmarks.graph_zoo`.

Takes the smallest model of each family, with random weights, and removes a random 30 %
of its removable channel dependency groups. Compares the result with the whole model, in
which all kernels ignore the removed channels. Prints a Markdown table and, for each
model, the reasons why channels have to stay.

With names as arguments it takes only those: `python -m benchmarks.graph_zoo VGG16`.
"""

import collections
import re
import sys
import time

import keras
import numpy as np

from benchmarks.common import APPLICATIONS, application
from tests.graph.removal import randomize, remove_some


def main(names):
    rows = []
    for name in names or APPLICATIONS:
        rng = np.random.default_rng(0)
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        model = application(name, classifier_activation=None)
        randomize(model, rng)
        before = model.count_params()
        start = time.perf_counter()
        smaller, channels, _, difference = remove_some(model, rng)
        rows.append(
            f"| {name} | {before:,} | {smaller.count_params():,} | "
            f"{channels.removable().sum():,} of {len(written(channels)):,} | "
            f"{difference:.1e} | {time.perf_counter() - start:.0f} |"
        )
        print(rows[-1])
        for reason, count in frozen(channels):
            print(f"    {count} channels stay: {reason}", flush=True)
    print(
        "\n| Model | Parameters | After | Removable groups | Largest difference "
        "| Seconds |\n|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


def written(channels):
    """Returns the channel dependency groups that layers write, without repetition."""
    return np.unique(np.concatenate(list(channels.written.values())))


def frozen(channels):
    """Returns `[(reason without names, number of groups)]`, the most frequent first."""
    reasons = collections.Counter(
        re.sub(r"'[^']*' \((\w+)\)|'[^']*'", lambda found: found[1] or "...", reason)
        for reason in (channels.frozen[group] for group in written(channels))
        if reason
    )
    return reasons.most_common()


if __name__ == "__main__":
    main(sys.argv[1:])
