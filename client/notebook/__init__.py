"""Results in notebooks, and in the libraries that notebooks use. Each library is imported when it is needed.

html        what Jupyter shows of a result
live        what Jupyter shows of a stream while it runs
frames      pandas and xarray
figure      matplotlib
bertviz     BertViz
selection   which numbers of an array a view takes: one layer, one head, means over the rest

Methods of the results lead here: see `results.conversions`.
"""
