"""Building, training, evaluating, predicting and the files of a run."""
