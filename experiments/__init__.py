"""Commands such as train and evaluate, and the results that they produced."""
