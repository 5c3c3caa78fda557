import numpy as np

from tfcompress.graph.union_find import UnionFind


def test_classes_are_the_connected_components_of_the_united_pairs():
    rng = np.random.default_rng(0)
    union = UnionFind()
    for _ in range(3):
        union.new(100)
    reached = np.eye(300, dtype=bool)
    for count in (1, 40, 80):
        # Ids repeat, so that one class has several partners at once.
        left, right = rng.integers(0, 300, (2, count))
        union.unite(left, right)
        reached[left, right] = reached[right, left] = True
    for _ in range(9):
        reached = reached @ reached
    classes = union.classes()
    np.testing.assert_array_equal(classes[:, None] == classes, reached)
    first = np.unique(classes, return_index=True)[1]
    assert (np.diff(first) > 0).all()


def test_union_of_empty_arrays_has_no_classes():
    union = UnionFind()
    union.unite(union.new(0), union.new(0))
    assert union.classes().tolist() == []
