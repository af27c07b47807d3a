"""How a run goes; private to the trainer."""
