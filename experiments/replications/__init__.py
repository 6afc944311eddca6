"""Published claims, run again: each script prints what a paper says beside what comes out here.

`python -m experiments.replications.NAME` writes its rows, figure and claims into runs/replications/NAME/ and ends with
code 1 if a claim is outside its tolerance, 2 if it could not run.
"""
