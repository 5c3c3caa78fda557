from recipes.common.flags import share_or_count


def test_a_budget_is_a_share_or_a_count():
    assert share_or_count("1/60") == "1/60"
    assert share_or_count("0.02") == "0.02"
    assert share_or_count("4e7") == 4e7
