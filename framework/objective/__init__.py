"""The objective of one optimizer step, f + g, as a function of the parameters; knows no trainer."""
