"""The published rules that score answers: pure functions of a reply and a row, one module per rule.

Unless a docstring says otherwise, a rule is that of ms-vlmeval 0.0.20 (VLMEvalKit), its mistakes included, and
`tests/evaluation/scorers` holds it equal to that package.
"""
