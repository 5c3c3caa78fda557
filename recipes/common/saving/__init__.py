"""Files of recipes that are whole, and states from which killed runs go on."""
