"""Result files that are complete, and states from which killed runs continue."""
