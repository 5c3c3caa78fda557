"""Knowledge distillation: the student trains on the outputs of a teacher."""
