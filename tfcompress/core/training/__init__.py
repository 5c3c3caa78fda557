"""The parts of a training that schemes share: searches, data, statistics, rates."""
