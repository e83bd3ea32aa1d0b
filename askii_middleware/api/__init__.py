"""The billing API: keys, budgets, prices, spend and reports as JSON, for operators and for keys' own holders."""
