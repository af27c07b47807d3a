"""The course of a run; private to the trainer."""
