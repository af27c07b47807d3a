"""The objective of one optimizer step, f + g, as a function of the parameters. Nothing here knows the trainer."""
